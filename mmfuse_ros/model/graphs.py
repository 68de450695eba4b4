"""A whole window as one CUDA graph: upload, resize, encode, fuse and download in one launch.

The graph's inputs are pinned host buffers that a window is copied into; its output is one pinned
buffer that everything is read from after one wait. Vision, audio and sensors run on streams of
their own. Shapes are static, so there is a graph for each set of streams and sizes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mmfuse_ros.model.backends import EncoderBackend
from mmfuse_ros.model.preprocess import normalize_audio, normalize_image, resize_and_crop
from mmfuse_ros.model.system import CAMERAS, RoboticFeedbackSystem

# A recording takes as long as dozens of windows: a set of streams must have come back first.
_SEEN_FIRST = 3
_GRAPHS = 8  # kept at once; they share one memory pool
_WARM_RUNS = 3  # before a recording: libraries pick and load their kernels

Arrays = Mapping[str, npt.NDArray[Any]]
Job = Callable[[], None]


class Recorder(Protocol):
    """Records what a device does, and does it again."""

    def together(self, jobs: Sequence[Job]) -> None:
        """Run jobs that do not depend on each other; return when all are under way."""

    def record(self, body: Job) -> Job:
        """Run `body`; return what repeats its work on the same buffers."""

    def wait(self) -> None:
        """Wait until the device has finished what it was given."""


class CudaRecorder:
    """CUDA graphs on one device.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sides = [torch.cuda.Stream(device) for _ in range(2)]
        self._main = torch.cuda.Stream(device)
        self._pool: Any = None

    def together(self, jobs: Sequence[Job]) -> None:
        main = torch.cuda.current_stream(self._device)
        sides = list(zip(self._sides, jobs[1:], strict=False))
        assert len(sides) == len(jobs) - 1
        for stream, job in sides:
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                job()
        jobs[0]()
        for stream, _ in sides:
            main.wait_stream(stream)

    def record(self, body: Job) -> Job:
        self._main.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._main):
            for _ in range(_WARM_RUNS):
                body()
        self._main.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._main):
            body()
        self._pool = graph.pool()

        def replay() -> None:
            with torch.cuda.stream(self._main):
                graph.replay()

        return replay

    def wait(self) -> None:
        self._main.synchronize()


class WindowGraphs:
    """Run windows of recurring shapes as recorded work.

    Args:
        system: on its device, in eval mode.
        backend: torch, on the same device.
        recorder: of that device.
    """

    def __init__(
        self, system: RoboticFeedbackSystem, backend: EncoderBackend, recorder: Recorder
    ) -> None:
        self._system, self._backend, self._recorder = system, backend, recorder
        self._graphs: OrderedDict[tuple[Any, ...], _WindowGraph] = OrderedDict()
        self._seen: Counter[tuple[Any, ...]] = Counter()

    def run(
        self, images: Arrays, signals: Arrays, *, at_once: bool = False
    ) -> dict[str, npt.NDArray[np.float32]] | None:
        """Return a window's vectors and "embedding", or None where its shape is still rare.

        Args:
            images: (H, W, 3) uint8 by camera, checked.
            signals: (C, T) float32 by name, checked, audio at the encoder's rate.
            at_once: record a new shape now.
        """
        inputs = {**images, **signals}
        if not inputs:
            return None
        key = tuple((name, array.shape) for name, array in sorted(inputs.items()))
        graph = self._graphs.get(key)
        if graph is None:
            self._seen[key] += 1
            if self._seen[key] < _SEEN_FIRST and not at_once:
                if len(self._seen) > 64:  # shapes that never settle must not pile up
                    self._seen.clear()
                return None
            while len(self._graphs) >= _GRAPHS:
                self._graphs.popitem(last=False)
            graph = _WindowGraph(self._system, self._backend, self._recorder, inputs)
            self._graphs[key] = graph
        self._graphs.move_to_end(key)
        return graph.run(inputs)


class _WindowGraph:
    """The recorded work of one set of shapes, and its buffers."""

    def __init__(
        self,
        system: RoboticFeedbackSystem,
        backend: EncoderBackend,
        recorder: Recorder,
        inputs: Arrays,
    ) -> None:
        self._system, self._backend, self._recorder = system, backend, recorder
        device = system.device
        pinned = device.type == "cuda"
        self._host = {
            name: torch.empty(a.shape, dtype=_DTYPES[a.dtype.kind], pin_memory=pinned)
            for name, a in inputs.items()
        }
        self._views = {name: tensor.numpy() for name, tensor in self._host.items()}
        self._device = {name: torch.empty_like(t, device=device) for name, t in self._host.items()}
        self._cameras = [name for name in CAMERAS if name in inputs]
        self._parts = (["vision"] if self._cameras else []) + [
            name for name in ("audio", "pressure", "emg") if name in inputs
        ]
        # Made here: a tensor made of Python numbers inside a recording would need the host.
        self._present = {n: torch.ones(1, dtype=torch.bool, device=device) for n in self._parts}
        dims = {n: system.fusion.dims["vision" if n in CAMERAS else n] for n in self.order}
        self._spans: dict[str, slice] = {}
        end = 0
        for name, size in {"embedding": system.fusion_dim, **dims}.items():
            self._spans[name] = slice(end, end + size)
            end += size
        self._out = torch.empty(end, pin_memory=pinned)
        self._result = self._out.numpy()
        self._fill(inputs)
        with torch.inference_mode():
            self._replay = recorder.record(self._body)

    @property
    def order(self) -> list[str]:
        """The streams, in the order of samples.Modality."""
        return [*self._cameras, *(n for n in self._parts if n != "vision")]

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[np.float32]]:
        self._fill(inputs)
        with torch.inference_mode():
            self._replay()
        self._recorder.wait()
        return {name: self._result[span].copy() for name, span in self._spans.items()}

    def _fill(self, inputs: Arrays) -> None:
        # The recorder has been waited for since the last run: nothing reads the buffers now.
        for name, array in inputs.items():
            np.copyto(self._views[name], array)

    def _body(self) -> None:
        """Do the window's work on the buffers; nothing in it may ask the device for a value."""
        vectors: dict[str, torch.Tensor] = {}
        groups = [names for names in (self._cameras, ["audio"], ["pressure", "emg"]) if names]
        jobs = []
        for names in groups:
            present = [name for name in names if name in self._host]
            if present:
                jobs.append(lambda present=present: vectors.update(self._encoded(present)))
        self._recorder.together(jobs)
        ordered = {name: vectors[name] for name in self.order}
        parts = {n: v for n, v in ordered.items() if n not in CAMERAS}
        if self._cameras:
            parts["vision"] = torch.stack([vectors[n] for n in self._cameras]).mean(dim=0)
        fused = self._system.fusion(parts, self._present)
        flat = torch.cat([fused.flatten(), *(v.float().flatten() for v in ordered.values())])
        self._out.copy_(flat, non_blocking=True)

    def _encoded(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Upload and encode the streams of one encoder -> (1, D_m) each."""
        for name in names:
            self._device[name].copy_(self._host[name], non_blocking=True)
        if names[0] in CAMERAS:
            spec = self._system.vision.spec
            square = [
                resize_and_crop(self._device[n].permute(2, 0, 1).unsqueeze(0), spec) for n in names
            ]
            encoded = self._backend.vision(normalize_image(torch.cat(square), spec))
            return dict(zip(names, encoded.split(1), strict=True))
        if names == ["audio"]:
            values = normalize_audio(self._device["audio"], self._system.audio.spec)
            return {"audio": self._backend.audio(values)}
        return {n: getattr(self._system, n)(self._device[n].unsqueeze(0)) for n in names}


_DTYPES = {"u": torch.uint8, "f": torch.float32}
