"""From a window to a result: decode, encode, fuse, judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.config import Config
from mmfuse_ros.errors import InputError
from mmfuse_ros.model.schedule import Schedule
from mmfuse_ros.model.statistics import log_mel_statistics, sensor_statistics
from mmfuse_ros.samples import Modality, Result, Signal, Window

if TYPE_CHECKING:
    from mmfuse_ros.anomaly.monitor import Monitor
    from mmfuse_ros.model.runtime import Engine

Array = npt.NDArray[np.float32]

_TYPICAL_IMAGE = (480, 640)

# The encoder on whose account a stage's time goes.
_STAGES = {"decode": "vision", "preprocess": "vision", "vision": "vision", "audio": "audio"}


# The sensor encoders only re-express the statistics below, so these alone are judged.
_LEARNED = ("embedding", Modality.CAMERA_1.value, Modality.CAMERA_2.value, Modality.AUDIO.value)


@dataclass(frozen=True)
class Encoded:
    """One window's vectors, fetched from the device.

    Attributes:
        vectors: (D_m,) float32 by stream, and the fused one under "embedding".
        features: what the anomaly monitor judges, by block name.
        failed: why a stream that was in the window is not among them.
        age_ns: how much older than the reference the data behind each vector is.
    """

    vectors: Mapping[str, Array]
    features: Mapping[str, Array]
    failed: Mapping[Modality, str]
    age_ns: Mapping[Modality, int]


class Pipeline:
    """The whole way of one window, on the thread that owns the model.

    Args:
        engine: the model on its device.
        monitor: the anomaly monitor; None for `encode` alone.
        schedule: how often the large encoders run; by default for every window.

    Where an encoder does not run, its newest vectors stand in, in the fused vector and in what
    the monitor judges; the plain features beside them are of the window at hand.

    Attributes:
        dropped: tells how many windows found the worker busy so far.
    """

    def __init__(
        self, engine: Engine, monitor: Monitor | None = None, schedule: Schedule | None = None
    ) -> None:
        self.engine = engine
        self.monitor = monitor
        self.schedule = schedule or Schedule(0.0, 0.0)
        self.dropped: Callable[[], int] = int

    def run(self, window: Window) -> Result:
        """Return the result of one window.

        Raises:
            InputError: nothing in the window could be used.
        """
        assert self.monitor is not None
        clock = _Stopwatch()
        encoded = self.encode(window, clock)
        verdict = self.monitor.observe(window.stamp_ns, encoded.features, window.phase or None)
        clock.lap("anomaly")
        present = tuple(m for m in Modality if m.value in encoded.vectors)
        offsets = [window.offset_ns.get(m, 0) for m in present]
        return Result(
            stamp_ns=window.stamp_ns,
            frame_id=window.frame_id,
            embedding=encoded.vectors["embedding"],
            present=present,
            modality_embeddings={m.value: encoded.vectors[m.value] for m in present},
            verdict=verdict,
            age_ns={m: encoded.age_ns[m] for m in present},
            skew_ns=max(offsets) - min(offsets),
            failed=encoded.failed,
            timings_s=clock.laps,
        )

    def encode(self, window: Window, clock: _Stopwatch | None = None) -> Encoded:
        """Return the vectors and features of one window, without a verdict.

        Raises:
            InputError: nothing in the window could be used.
        """
        clock = clock or _Stopwatch()
        plan = self.schedule.plan(window, self.dropped())
        images, failed = _decode(window) if "vision" in plan.run else ({}, dict(plan.failed))
        clock.lap("decode")
        signals = {
            m.value: s
            for m, s in window.signals.items()
            if m is not Modality.AUDIO or "audio" in plan.run
        }
        held = {m.value: vector for m, vector in plan.held.items()}
        if not (images or signals or held):
            raise InputError(
                "a window must hold at least one usable stream, got none; undecodable: "
                + "; ".join(f"{m} ({why})" for m, why in failed.items())
            )
        vectors = self.engine.window(images, signals, held, clock.lap)
        features = {name: vectors[name] for name in _LEARNED if name in vectors}
        features.update(plain_features(window.signals))
        clock.lap("features")
        self.schedule.done(window, plan, vectors, failed, _costs(clock.laps))
        return Encoded(vectors, features, failed, plan.age_ns)


def _costs(laps: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds that each large encoder took in a window, and those of the rest."""
    costs = {"rest": 0.0}
    for stage, seconds in laps.items():
        name = _STAGES.get(stage, "rest")
        costs[name] = costs.get(name, 0.0) + seconds
    return costs


def plain_features(signals: Mapping[Modality, Signal]) -> dict[str, Array]:
    """Return the physically plain features of each signal, loudness and amplitude kept.

    They stand beside the learned embeddings because a speech model normalises loudness away.
    """
    features: dict[str, Array] = {}
    for modality, signal in signals.items():
        if modality is Modality.AUDIO:
            row = log_mel_statistics(signal.values, signal.rate_hz)[0]
            features["audio:log_mel"] = np.asarray(row, np.float32)
        else:
            row = sensor_statistics(signal.values[None], signal.rate_hz)[0]
            features[f"{modality}:statistics"] = np.asarray(row, np.float32)
    return features


def _decode(
    window: Window,
) -> tuple[dict[str, npt.NDArray[np.uint8]], dict[Modality, str]]:
    """Return the window's pictures, and the cause for each that cannot be decoded."""
    images: dict[str, npt.NDArray[np.uint8]] = {}
    failed: dict[Modality, str] = {}
    for modality, frame in window.frames.items():
        try:
            images[modality.value] = frame.decode()
        except InputError as error:
            failed[modality] = str(error)
    return images, failed


class _Stopwatch:
    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._last
        self._last = now


def calibration_context(config: Config, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a calibration depends on: it serves no node that differs in any of it.

    Args:
        info: as `Engine.info`.
    """
    context: dict[str, Any] = {
        "preset": info["preset"],
        "weights": info["weights"],
        "fusion": info["fusion"],
        # bf16 and fp16 vectors lie apart from fp32 ones by more than they do from each other.
        "precision": "fp32" if info["precision"] == "fp32" else "half",
        "modalities": [m.value for m in config.enabled],
    }
    if info["weights"] == "random":
        context["seed"] = config.model.seed
        context["checkpoint"] = info.get("checkpoint", "")
    for modality in config.enabled:
        if not modality.is_camera:
            section = getattr(config, modality.value)
            context[f"{modality}.window_s"] = section.window_s
            context[f"{modality}.rate_hz"] = section.rate_hz
    return context


def warm_up(engine: Engine, config: Config) -> None:
    """Run windows of the configured shapes, so that the first real one is as fast as the rest."""
    shapes = {}
    for modality in config.enabled:
        if not modality.is_camera:
            section = getattr(config, modality.value)
            channels = 1 if modality is Modality.AUDIO else section.channels
            samples = round(section.window_s * section.rate_hz)
            shapes[modality.value] = (channels, samples, section.rate_hz)
    cameras = [m.value for m in config.enabled if m.is_camera]
    engine.warm_up(dict.fromkeys(cameras, _TYPICAL_IMAGE), shapes)
