"""The two large encoders in OpenVINO, on the CPU: compiled once for each shape, kept on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfuse_ros.errors import ConfigError
from mmfuse_ros.files import atomic_write
from mmfuse_ros.model.backends import fold_weight_norm
from mmfuse_ros.model.encoders import tensor_hash
from mmfuse_ros.model.system import RoboticFeedbackSystem

_LOG = logging.getLogger(__name__)

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_SHAPES = 2  # compiled at once by encoder; each holds its own copy of the weights
_FILES = 8  # compiled models kept on disk, some hundred MB each; the least recently used go


def openvino_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


class OpenVinoBackend:
    """The encoders of a system, whose fp32 weights are read at each first run of a shape.

    Args:
        system: its encoders must be fp32 and on the CPU, and stay so.
        precision: fp32, bf16 or fp16, of the arithmetic.
        threads: 0 leaves the choice to OpenVINO.

    Raises:
        ConfigError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, system: RoboticFeedbackSystem, precision: str, threads: int = 0) -> None:
        if not openvino_installed():
            raise ConfigError(
                "model.backend 'openvino' needs the package openvino, which is not installed; "
                "pip install 'mmfuse_ros[openvino]', or set model.backend to torch"
            )
        import openvino

        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads would stay on a core that the ROS thread is busy on.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        self._vision = _Encoder(core, system.vision, "vision", precision, options)
        self._audio = _Encoder(core, system.audio, "audio", precision, options)

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        # One picture runs in a model for two rather than have it compiled while streams wait.
        rows = len(pixels)
        room = min((s[0] for s in self._vision.shapes if s[0] >= rows), default=rows)
        if room > rows:
            pixels = torch.cat([pixels, pixels[-1:].expand(room - rows, -1, -1, -1)])
        return self._vision(pixels)[:rows]

    def audio(self, values: torch.Tensor) -> torch.Tensor:
        return self._audio(values)

    def close(self) -> None:
        del self._vision, self._audio


class _Encode(torch.nn.Module):
    """The part of an encoder that is compiled: normalised tensors to vectors."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder.encode(x)  # type: ignore[operator]


class _Encoder:
    """One encoder, compiled for the shapes that it has met."""

    def __init__(
        self,
        core: Any,
        encoder: torch.nn.Module,
        name: str,
        precision: str,
        options: dict[str, Any],
    ) -> None:
        fold_weight_norm(encoder)
        self._core, self._name, self._options = core, name, options
        self._encoder = encoder
        parts = [
            tensor_hash(encoder),
            str(encoder.model.config.to_json_string()),  # type: ignore[union-attr,operator]
            precision,
            *(importlib.metadata.version(p) for p in ("openvino", "torch", "transformers")),
            core.get_property("CPU", "FULL_DEVICE_NAME"),
            *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        ]
        self._identity = "\n".join(parts)
        self._requests: dict[tuple[int, ...], Any] = {}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return list(self._requests)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(x.shape)
        request = self._requests.get(shape)
        if request is None:
            while len(self._requests) >= _SHAPES:
                del self._requests[next(iter(self._requests))]
            request = self._compiled(shape).create_infer_request()
            self._requests[shape] = request
        values = np.ascontiguousarray(x.numpy(), np.float32)
        result = request.infer([values], share_inputs=True)
        return torch.from_numpy(np.array(result[0]))

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        """Return the compiled model of a shape, from the disk where it is there."""
        key = hashlib.sha256(f"{self._identity}\n{shape}".encode()).hexdigest()
        path = cache_folder() / f"{self._name}-{key[:32]}.blob"
        try:
            compiled = self._core.import_model(io.BytesIO(path.read_bytes()), "CPU", self._options)
            path.touch()  # its rank among the least recently used
            return compiled
        except FileNotFoundError:
            _LOG.info("compiling the %s encoder for OpenVINO; kept for next time", self._name)
        except Exception as error:  # boundary: whatever a damaged file makes the reader raise
            _LOG.warning("compiled %s encoder is not usable, made anew: %s", self._name, error)
        begun = time.monotonic()
        compiled = self._core.compile_model(self._converted(shape), "CPU", self._options)
        _LOG.info("%s encoder compiled in %.1f s", self._name, time.monotonic() - begun)
        _keep(compiled, path)
        return compiled

    def _converted(self, shape: tuple[int, ...]) -> Any:
        import openvino

        example = torch.zeros(shape)
        with torch.inference_mode(False), torch.no_grad(), _quiet():
            # A check of the trace would run the model again, and the probe does so later.
            traced = torch.jit.trace(_Encode(self._encoder), example, check_trace=False)
            model = openvino.convert_model(traced, example_input=example)
        model.reshape(list(shape))
        return model


def cache_folder() -> Path:
    """Return where compiled models are kept: $XDG_CACHE_HOME/mmfuse/openvino."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mmfuse" / "openvino"


def _keep(compiled: Any, path: Path) -> None:
    """Write a compiled model to the disk, and remove the ones that were not used for longest."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_bytes(compiled.export_model().getvalue())
        newest_first = sorted(
            path.parent.glob("*.blob"), key=lambda p: p.stat().st_mtime, reverse=True
        )
        for old in newest_first[_FILES:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _LOG.warning("a compiled model could not be kept, the next start compiles: %s", error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's warnings out of the log: the shapes are fixed on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
