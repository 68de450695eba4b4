"""What the node asks of an anomaly detector: one window at a time, a verdict each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly.calibrated import CalibratedMonitor
from mmfuse_ros.anomaly.cosine import CosineMonitor
from mmfuse_ros.config import AnomalyConfig
from mmfuse_ros.samples import Verdict

__all__ = ["CalibratedMonitor", "CosineMonitor", "Monitor", "make_monitor"]


class Monitor(Protocol):
    """Judges windows in the order of their stamps. One thread at a time.

    A calibration or baseline that is gathered live is saved to the file that
    `anomaly.calibration` names, so that a restart finds it; the file need not exist before.

    Attributes:
        fault: why that file could not be written, "" where nothing is wrong.
    """

    fault: str

    @property
    def calibration_id(self) -> str:
        """Names the calibration or baseline in use, "" without one."""

    def observe(
        self,
        stamp_ns: int,
        features: Mapping[str, npt.NDArray[np.floating]],
        phase: str | None = None,
    ) -> Verdict:
        """Judge one window.

        Args:
            stamp_ns: the window's reference stamp.
            features: (dim,) by block: "embedding" is the fused vector, every other key is a
                modality or "modality:view". An absent key is an absent modality.
            phase: what the robot is doing, where somebody says.
        """

    def reset(self) -> None:
        """Forget recent windows and the alarm; keep the calibration."""

    def configure(self, config: AnomalyConfig) -> None:
        """Take new thresholds, debounce and modalities.

        Raises:
            CalibrationError: the calibration cannot support the new alpha; nothing is changed.
        """

    def check(self, config: AnomalyConfig) -> None:
        """Raise what `configure` would, and change nothing; any thread."""

    def begin_baseline(self, count: int) -> None:
        """Gather a calibration from the coming windows, at least `count`, and then use it."""

    def clear_baseline(self) -> None:
        """Drop the calibration or baseline and any that is being gathered; its file stays."""


def make_monitor(config: AnomalyConfig, context: Mapping[str, object] | None = None) -> Monitor:
    """Return the monitor that the parameters ask for, its calibration loaded and checked.

    Args:
        config: the `anomaly` parameters.
        context: what the features are made with, compared with the calibration's.

    Raises:
        CalibrationError: the file is unreadable, made for another system, or does not support
            `alpha`.
    """
    make = CosineMonitor if config.method == "cosine" else CalibratedMonitor
    return make.from_config(config, context or {})
