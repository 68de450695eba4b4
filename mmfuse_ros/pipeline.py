"""From a window to a result: decode, encode, fuse, judge."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmfuse_ros.errors import InputError
from mmfuse_ros.model.statistics import log_mel_statistics, sensor_statistics
from mmfuse_ros.samples import Modality, Result, Signal, Window

if TYPE_CHECKING:
    from mmfuse_ros.anomaly.monitor import Monitor
    from mmfuse_ros.model.runtime import Engine

Array = npt.NDArray[np.float32]


class Pipeline:
    """The whole way of one window, on the thread that owns the model.

    Args:
        engine: the model on its device.
        monitor: the anomaly monitor.
    """

    def __init__(self, engine: Engine, monitor: Monitor) -> None:
        self.engine = engine
        self.monitor = monitor

    def run(self, window: Window) -> Result:
        """Return the result of one window.

        Raises:
            InputError: nothing in the window could be used.
        """
        clock = _Stopwatch()
        images, failed = _decode(window)
        clock.lap("decode")
        if not images and not window.signals:
            raise InputError(
                "a window must hold at least one usable stream, got none; undecodable: "
                + "; ".join(f"{m} ({why})" for m, why in failed.items())
            )
        encoded = self.engine.encode(images, {str(m): s for m, s in window.signals.items()})
        fused = self.engine.fuse(encoded)
        vectors = self.engine.fetch({"embedding": fused, **encoded})
        clock.lap("model")
        features = {**vectors, **plain_features(window.signals)}
        clock.lap("features")
        verdict = self.monitor.observe(window.stamp_ns, features, window.phase or None)
        clock.lap("anomaly")
        present = tuple(m for m in Modality if m.value in encoded)
        offsets = [window.offset_ns.get(m, 0) for m in present]
        return Result(
            stamp_ns=window.stamp_ns,
            frame_id=window.frame_id,
            embedding=vectors["embedding"],
            present=present,
            modality_embeddings={m.value: vectors[m.value] for m in present},
            verdict=verdict,
            age_ns={m: -window.offset_ns.get(m, 0) for m in present},
            skew_ns=max(offsets) - min(offsets),
            failed=failed,
            timings_s=clock.laps,
        )


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
