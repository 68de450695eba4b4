"""The model at run time: device, precision, backend. One thread owns an Engine."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mmfuse_ros import __version__
from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError, InputError, ModelError
from mmfuse_ros.memory import give_back
from mmfuse_ros.model.backends import DTYPES, EncoderBackend, TorchBackend, auto_precision
from mmfuse_ros.model.checkpoint import encoder_sources, load_checkpoint
from mmfuse_ros.model.encoders import seeded, tensor_hash
from mmfuse_ros.model.graphs import CudaRecorder, WindowGraphs
from mmfuse_ros.model.openvino_backend import OpenVinoBackend, openvino_installed
from mmfuse_ros.model.preprocess import (
    normalize_audio,
    normalize_image,
    resample_audio,
    resize_and_crop,
)
from mmfuse_ros.model.presets import ENCODERS
from mmfuse_ros.model.system import CAMERAS, RoboticFeedbackSystem, resolve_device
from mmfuse_ros.samples import Modality, Signal

_LOG = logging.getLogger(__name__)

# One window's images and signals, by stream.
WindowInput: TypeAlias = tuple[Mapping[str, npt.NDArray[np.uint8]], Mapping[str, Signal]]

MIN_COSINE = 0.999  # to fp32, on the probe; bf16 reaches 0.9999 on real recordings


def _no_lap(stage: str) -> None:
    pass


class Engine:
    """Encode and fuse windows on one device, for one thread.

    Args:
        system: taken over: its encoders are put into eval mode, moved and cast in place.
        device: as of RoboticFeedbackSystem; None leaves the system where it is.
        precision: of the two large encoders; "auto" takes bf16 where the device computes faster
            in it. Sensor encoders and fusion are fp32.
        backend: "auto", "torch" or "openvino"; auto takes OpenVINO on a CPU where it is
            installed, and `info` says which one it became.
        threads: CPU threads of the model in this process; 0 leaves them as they are.
        audio_s: length of the windows to come, which OpenVINO compiles for.

    Raises:
        ConfigError: a device, precision or backend that is not there, or a precision whose
            vectors on a fixed probe are not within a cosine of 0.999 of fp32.
    """

    def __init__(
        self,
        system: RoboticFeedbackSystem,
        *,
        device: str | torch.device | None = None,
        precision: str = "auto",
        backend: str = "auto",
        threads: int = 0,
        audio_s: float = 3.0,
    ) -> None:
        if backend not in ("auto", "torch", "openvino"):
            raise ConfigError(f"model.backend must be auto, torch or openvino, got {backend!r}")
        if precision not in ("auto", *DTYPES):
            raise ConfigError(
                f"model.precision must be auto, {', '.join(DTYPES)}, got {precision!r}"
            )
        if threads:
            torch.set_num_threads(threads)
        self._system = system.eval().requires_grad_(False)
        if device is not None:
            self._system.to(resolve_device(device))
        self._device = self._system.device
        if backend == "openvino" and self._device.type != "cpu":
            raise ConfigError(
                f"model.backend 'openvino' must run on the cpu, got {self._device}; set "
                "model.device to cpu, or model.backend to torch"
            )
        self._precision = auto_precision(self._device) if precision == "auto" else precision
        self._audio_s = audio_s
        identity = _identity(system)  # before the cast: the hash is of the weights as loaded
        self._backend = self._chosen_backend(backend, threads, asked=precision != "auto")
        self._graphs: WindowGraphs | None = None
        self._warming = False
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # what the fp32 weights held is given back to the device
            self._graphs = WindowGraphs(system, self._backend, CudaRecorder(self._device))
        self.info: dict[str, Any] = {
            "model": f"mmfuse_ros {__version__}",
            "preset": system.preset,
            **identity,
            "fusion": system.fusion_method,
            "seed": system.seed,
            "device": _device_name(self._device),
            "backend": self._backend.name,
            "precision": self._precision,
            "modalities": [m.value for m in Modality],
            "dims": {m.value: self._dim(m.value) for m in Modality},
            "embedding_dim": system.fusion_dim,
        }

    def window(
        self,
        images: Mapping[str, npt.NDArray[np.uint8]],
        signals: Mapping[str, Signal],
        held: Mapping[str, npt.NDArray[np.float32]] | None = None,
        lap: Callable[[str], None] = _no_lap,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return each stream's vector (D_m,), and the fused one as "embedding", on the host.

        The same vectors as of `encode`, `fuse` and `fetch`, by the fastest way there is.

        Args:
            images, signals: as of `encode`.
            held: vectors of earlier windows, by stream, fused with the new ones.
            lap: called with a stage's name when it has ended; stages that a device runs at once
                are one, "model".

        Raises:
            InputError: as of `encode`.
            ModelError: the device is out of memory; what the window held there is released.
        """
        try:
            return self._window(images, signals, held, lap)
        except torch.cuda.OutOfMemoryError as error:
            cause = str(error).partition("\n")[0]
        # Only here, behind the handler, is the failed window's memory free to be given back.
        torch.cuda.empty_cache()
        raise ModelError(
            f"the device must have memory for a window, got: {cause}; end other programs on "
            f"{self._device}, or take a smaller model.preset"
        )

    def _window(
        self,
        images: Mapping[str, npt.NDArray[np.uint8]],
        signals: Mapping[str, Signal],
        held: Mapping[str, npt.NDArray[np.float32]] | None,
        lap: Callable[[str], None],
    ) -> dict[str, npt.NDArray[np.float32]]:
        if self._graphs is not None and not held:
            recorded = self._graphs.run(*self._checked(images, signals), at_once=self._warming)
            if recorded is not None:
                lap("model")
                return recorded
        vectors = self.encode(images, signals, lap)
        for name, vector in (held or {}).items():
            vectors[name] = torch.from_numpy(vector).to(self._device)
        ordered = {str(m): vectors[m] for m in Modality if m in vectors}
        fetched = self.fetch({"embedding": self.fuse(ordered), **ordered})
        lap("fusion")
        return fetched

    @torch.inference_mode()
    def encode(
        self,
        images: Mapping[str, npt.NDArray[np.uint8]],
        signals: Mapping[str, Signal],
        lap: Callable[[str], None] = _no_lap,
    ) -> dict[str, torch.Tensor]:
        """Return each stream's vector (D_m,), float32, still on the device.

        Args:
            images: by camera, (H, W, 3) uint8 RGB of any size.
            signals: audio (1, T) in [-1, 1] at any rate; pressure and EMG (C, T).

        Keys and their order are those of samples.Modality.

        Raises:
            InputError: an unknown stream, or a wrong shape, type or NaN in one.
        """
        rows = self._rows([(images, signals)], lap)
        return {name: vectors[0] for name, vectors in rows.items()}

    def batch(
        self, windows: Sequence[WindowInput], lap: Callable[[str], None] = _no_lap
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Encode and fuse recorded windows at once, as (B, D): by stream, and "embedding".

        Args:
            windows: images and signals of each, as of `encode`; all hold the same streams, and
                signals of one length.
            lap: as of `window`.

        Raises:
            InputError: the windows differ in what they hold, or as of `encode`.
        """
        first = {*windows[0][0], *windows[0][1]}
        if any({*images, *signals} != first for images, signals in windows):
            raise InputError("windows of one batch must hold the same streams; sort them first")
        with torch.inference_mode():
            rows = self._rows(windows, lap)
            fused = self._system.fuse(rows)
        fetched = self.fetch({"embedding": fused, **rows})
        lap("fusion")
        return fetched

    @torch.inference_mode()
    def _rows(
        self, windows: Sequence[WindowInput], lap: Callable[[str], None]
    ) -> dict[str, torch.Tensor]:
        """Return each stream's vectors, (B, D_m), in the order of samples.Modality."""
        images, signals = windows[0]
        vectors: dict[str, torch.Tensor] = {}
        _check_names(images, signals)
        cameras = [name for name in CAMERAS if name in images]
        if cameras:
            square = [self._square(name, row[name]) for row, _ in windows for name in cameras]
            pixels = normalize_image(torch.cat(square), self._system.vision.spec)
            lap("preprocess")
            encoded = self._backend.vision(pixels).unflatten(0, (-1, len(cameras)))
            vectors.update(zip(cameras, encoded.unbind(dim=1), strict=True))
            lap("vision")
        if "audio" in signals:
            wave = torch.cat([self._wave(row["audio"]) for _, row in windows])
            vectors["audio"] = self._backend.audio(normalize_audio(wave, self._system.audio.spec))
            lap("audio")
        for name in ("pressure", "emg"):
            if name in signals:
                encoder = getattr(self._system, name)
                values = [self._values(name, row[name], encoder.channels) for _, row in windows]
                vectors[name] = encoder(self._to_device(np.stack(values)))
        lap("sensors")
        return vectors

    @property
    def head(self) -> Callable[..., torch.Tensor]:
        """The system's `fuse`, with batches and masks of presence: `mmfuse report` needs it."""
        return self._system.fuse

    @torch.inference_mode()
    def fuse(self, embeddings: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Fuse the vectors of `encode`, at least one -> (D,), still on the device."""
        return self._system.fuse({n: v.unsqueeze(0) for n, v in embeddings.items()})[0]

    def fetch(self, value: torch.Tensor | Mapping[str, torch.Tensor]) -> Any:
        """Return a tensor, or each of a mapping, as float32 NumPy; waits for the device once."""
        if isinstance(value, torch.Tensor):
            return value.detach().float().cpu().numpy()
        if not value:
            return {}
        flat = torch.cat([v.detach().float().flatten() for v in value.values()]).cpu().numpy()
        ends = np.cumsum([v.numel() for v in value.values()])
        parts = np.split(flat, ends[:-1])
        return {n: p.reshape(v.shape) for (n, v), p in zip(value.items(), parts, strict=True)}

    def warm_up(
        self,
        image_sizes: Mapping[str, tuple[int, int]] | None = None,
        signal_shapes: Mapping[str, tuple[int, int, float]] | None = None,
    ) -> None:
        """Run windows of these shapes, so that the first real one is as fast as the rest.

        Args:
            image_sizes: (height, width) of each camera; default two of 480 x 640.
            signal_shapes: (channels, samples, rate_hz) of each signal; default 3 s of audio at
                the encoder's rate, 1 s of the others at 1 kHz.
        """
        system = self._system
        rate_hz = system.audio.spec.rate_hz
        if image_sizes is None:
            image_sizes = dict.fromkeys(CAMERAS, (480, 640))
        if signal_shapes is None:
            signal_shapes = {
                "audio": (1, 3 * rate_hz, float(rate_hz)),
                "pressure": (system.pressure.channels, 1000, 1000.0),
                "emg": (system.emg.channels, 1000, 1000.0),
            }
        images = {n: np.zeros((h, w, 3), np.uint8) for n, (h, w) in image_sizes.items()}
        signals = {
            n: Signal(np.zeros((c, t), np.float32), rate)
            for n, (c, t, rate) in signal_shapes.items()
        }
        give_back()  # what loading took for a while
        for _ in range(2):  # the second run meets the allocator's and the kernels' caches
            if images or signals:
                self._warming = True
                self.window(images, signals)
                self._warming = False

    def memory(self) -> dict[str, float]:
        """Return the device's memory in use by this process, MiB; empty on a CPU."""
        if self._device.type != "cuda":
            return {}
        return {
            "device_allocated_mb": torch.cuda.memory_allocated(self._device) / 2**20,
            "device_reserved_mb": torch.cuda.memory_reserved(self._device) / 2**20,
        }

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        if hasattr(self, "_backend"):
            self._graphs = None
            self._backend.close()
            del self._backend, self._system
            gc.collect()
            give_back()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _checked(
        self, images: Mapping[str, npt.NDArray[np.uint8]], signals: Mapping[str, Signal]
    ) -> tuple[dict[str, npt.NDArray[np.uint8]], dict[str, npt.NDArray[np.float32]]]:
        """Return a window's arrays as a graph takes them; errors as of `encode`."""
        _check_names(images, signals)
        for name, image in images.items():
            _check_image(name, image)
        arrays = {}
        for name, signal in signals.items():
            if name == "audio":
                arrays[name] = self._samples(signal)
            else:
                channels = getattr(self._system, name).channels
                arrays[name] = self._values(name, signal, channels)
        return dict(images), arrays

    def _square(self, name: str, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        _check_image(name, image)
        if not image.flags.writeable or any(s < 0 for s in image.strides):
            image = image.copy()  # torch takes neither read-only nor mirrored arrays
        pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1).unsqueeze(0)
        return resize_and_crop(pixels, self._system.vision.spec)

    def _wave(self, signal: Signal) -> torch.Tensor:
        return self._to_device(self._samples(signal))

    def _samples(self, signal: Signal) -> npt.NDArray[np.float32]:
        """Return the window's sound, (1, T), at the encoder's rate."""
        values = self._values("audio", signal, 1)
        encoder = self._system.audio
        wave = resample_audio(values, signal.rate_hz, encoder.spec.rate_hz)
        if wave.shape[1] < encoder.min_samples:
            raise InputError(
                f"audio must last at least {encoder.min_samples / encoder.spec.rate_hz:g} s, "
                f"got {values.shape[1] / signal.rate_hz:g} s; lengthen audio.window_s"
            )
        return wave

    @staticmethod
    def _values(name: str, signal: Signal, channels: int) -> npt.NDArray[np.float32]:
        values = np.asarray(signal.values, np.float32)
        if values.ndim != 2 or values.shape[0] != channels or values.shape[1] == 0:
            raise InputError(
                f"{name} must be ({channels}, samples), got {values.shape}; "
                f"the channel count is set with {name}.channels"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{name} must be finite, got NaN or infinite values")
        return values

    def _to_device(self, values: npt.NDArray[np.float32]) -> torch.Tensor:
        if not values.flags.writeable or not values.flags.c_contiguous:
            values = values.copy()
        return torch.from_numpy(values).to(self._device)

    def _dim(self, name: str) -> int:
        return self._system.fusion.dims["vision" if name in CAMERAS else name]

    def _chosen_backend(self, backend: str, threads: int, *, asked: bool) -> EncoderBackend:
        """Return the backend, its vectors compared with those of torch in fp32 on the probe."""
        reference = TorchBackend(self._system, "fp32")
        openvino = backend == "openvino" or (
            backend == "auto" and self._device.type == "cpu" and openvino_installed()
        )
        if self._precision == "fp32" and not openvino:
            return reference
        expected = self._probe(reference)
        if openvino:
            try:
                found = OpenVinoBackend(self._system, self._precision, threads)
                self._compare(found, expected, asked=asked)
                return found
            except Exception as error:  # boundary: foreign code, whose errors are many
                if backend == "openvino":
                    raise
                # What OpenVINO cannot convert, torch still runs; `info` says which it is.
                _LOG.warning(
                    "model.backend is torch, since OpenVINO failed: %s", error, exc_info=True
                )
        if self._precision == "fp32":
            return reference
        cast = TorchBackend(self._system, self._precision)
        self._compare(cast, expected, asked=asked)
        return cast

    def _compare(
        self, backend: EncoderBackend, expected: Mapping[str, torch.Tensor], *, asked: bool
    ) -> None:
        """Refuse a backend whose vectors on the probe stray from fp32."""
        got = self._probe(backend)
        cosine = {n: torch.cosine_similarity(expected[n], got[n]).min().item() for n in expected}
        _LOG.info("cosine of %s %s to fp32: %s", backend.name, self._precision, cosine)
        bad = {n: c for n, c in cosine.items() if not c >= MIN_COSINE}
        if bad:
            raise ConfigError(
                f"model.precision {self._precision!r}{'' if asked else ' (chosen by auto)'} must "
                f"keep a cosine of {MIN_COSINE} to fp32 on the probe, got "
                + ", ".join(f"{c:.5f} for {n}" for n, c in bad.items())
                + f" in {backend.name}; set model.precision to fp32"
            )

    @torch.inference_mode()
    def _probe(self, backend: EncoderBackend) -> dict[str, torch.Tensor]:
        """Encode two fixed pictures and a fixed sound, of soft noise and of tones."""
        side = self._system.vision.spec.crop
        rate_hz = self._system.audio.spec.rate_hz
        samples = max(round(self._audio_s * rate_hz), self._system.audio.min_samples)
        with seeded(0, "probe"):
            coarse = torch.rand(2, 3, 14, 14)
            noise = torch.randn(1, samples) * 0.05
        picture = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
        time_s = torch.arange(samples) / rate_hz
        tones = sum(torch.sin(2 * torch.pi * f * time_s) for f in (110.0, 440.0, 1760.0))
        wave = noise + 0.1 * tones
        pixels = normalize_image(picture.to(self._device), self._system.vision.spec)
        values = normalize_audio(wave.to(self._device), self._system.audio.spec)
        return {"vision": backend.vision(pixels), "audio": backend.audio(values)}


def build_system(config: Config) -> RoboticFeedbackSystem:
    """Build the system that a node's configuration asks for, fp32 on the CPU.

    Raises:
        CheckpointError: weights or checkpoint missing, unreadable or of another model.
    """
    model = config.model
    options: dict[str, Any] = {
        "fusion_method": model.fusion,
        "device": "cpu",
        "preset": model.preset,
        "weights": model.weights,
        "vision": model.vision or None,
        "audio": model.audio or None,
        "pressure_channels": config.pressure.channels,
        "emg_channels": config.emg.channels,
        "allow_download": model.allow_download,
        "seed": model.seed,
    }
    if model.checkpoint:
        options.update(encoder_sources(model.checkpoint))
    system = RoboticFeedbackSystem(**options)
    if model.checkpoint:
        load_checkpoint(system, model.checkpoint)
    return system


def build_engine(config: Config) -> Engine:
    """Build the system and the engine that a node's configuration asks for.

    Raises:
        ConfigError: a device, precision or backend that is not there.
        CheckpointError: weights or checkpoint missing, unreadable or of another model.
    """
    model = config.model
    device = resolve_device(model.device)  # an absent one shows before the weights are read
    return Engine(
        build_system(config),
        device=device,
        precision=model.precision,
        backend=model.backend,
        threads=model.threads,
        audio_s=config.audio.window_s,
    )


def _check_names(images: Mapping[str, Any], signals: Mapping[str, Any]) -> None:
    for name in (*images, *signals):
        if name not in (CAMERAS if name in images else ("audio", "pressure", "emg")):
            raise InputError(f"a stream must be one of {[*Modality]}, got {name!r}")


def _check_image(name: str, image: npt.NDArray[np.uint8]) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise InputError(f"{name} must be a uint8 array (H, W, 3), got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"{name} must be (H, W, 3) RGB, got {image.shape}")


def _identity(system: RoboticFeedbackSystem) -> dict[str, Any]:
    """Return what the weights are: "random", or one hash over encoders and checkpoint."""
    encoders = {}
    for name in ENCODERS:
        encoder = getattr(system, name)
        weights = "random" if encoder.random else tensor_hash(encoder)
        encoders[name] = {"name": encoder.name, "weights": weights}
    both = [e["weights"] for e in encoders.values()]
    joined = hashlib.sha256(" ".join([*both, system.checkpoint]).encode()).hexdigest()
    return {
        "weights": "random" if "random" in both else joined,
        "encoders": encoders,
        "checkpoint": system.checkpoint,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
