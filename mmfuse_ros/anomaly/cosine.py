"""The simple baseline: cosine similarity to the mean of normal windows, a fixed threshold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly import artefact
from mmfuse_ros.anomaly.debounce import Debounce
from mmfuse_ros.anomaly.recordings import modality_of
from mmfuse_ros.config import AnomalyConfig
from mmfuse_ros.errors import CalibrationError, ConfigError
from mmfuse_ros.samples import Level, ModalityVerdict, Verdict

FloatArray = npt.NDArray[np.floating]

KIND = "mmfuse-baseline"
FUSED = "embedding"


class CosineMonitor:
    """Flags a window whose fused vector turns away from the mean of a baseline.

    The verdict's score is one minus the cosine, its threshold one minus `threshold`. A fixed
    cosine threshold promises no false-alarm rate, so that p is NaN; see docs/anomaly.md for what
    it detects.

    Args:
        threshold: cosine similarity below which a window is flagged, -1 to 1.
        debounce: from flagged windows to an alarm.
        modalities: those that may be named as the top; all where None.
    """

    def __init__(
        self,
        threshold: float = 0.85,
        debounce: Debounce | None = None,
        modalities: tuple[str, ...] | None = None,
    ) -> None:
        if not -1.0 <= threshold <= 1.0:
            raise ConfigError(f"threshold must be between -1 and 1, got {threshold}")
        self.threshold = threshold
        self.debounce = debounce or Debounce()
        self.modalities = modalities
        self.context: dict[str, object] = {}
        self.path = ""
        self.fault = ""
        self._baseline: dict[str, FloatArray] = {}
        self._id = ""
        self._wanted = 0
        self._seen = 0
        self._sums: dict[str, tuple[FloatArray, int]] = {}

    @classmethod
    def from_config(cls, config: AnomalyConfig, context: Mapping[str, object]) -> CosineMonitor:
        """Make one from parameters; see `make_monitor`."""
        monitor = cls(
            config.threshold, Debounce(config.debounce_k, config.debounce_n), config.modalities
        )
        monitor.path = config.calibration
        if artefact.exists(config.calibration):
            monitor.load(config.calibration, context)
        monitor.context = dict(context)
        return monitor

    @property
    def calibration_id(self) -> str:
        """Twelve hexadecimal digits of a hash of the baseline, "" without one."""
        return self._id

    def configure(self, config: AnomalyConfig) -> None:
        """Take new thresholds, debounce and modalities."""
        self.threshold = config.threshold
        self.modalities = config.modalities
        self.debounce = self.debounce.changed(config.debounce_k, config.debounce_n)

    def check(self, config: AnomalyConfig) -> None:
        """Accept whatever passed the parameters' own rules; see `Monitor.check`."""

    def reset(self) -> None:
        """Forget recent windows and the alarm; keep the baseline."""
        self.debounce.reset()

    def begin_baseline(self, count: int) -> None:
        """Take the mean of the next `count` windows as the new baseline.

        Raises:
            ConfigError: count is below 1.
        """
        if count < 1:
            raise ConfigError(f"a baseline must have at least 1 window, got {count}")
        self.clear_baseline()
        self._wanted = count

    def clear_baseline(self) -> None:
        """Drop the baseline and any that is being gathered."""
        self._baseline, self._sums, self._id = {}, {}, ""
        self._wanted = self._seen = 0
        self.fault = ""
        self.debounce.reset()

    def observe(
        self, stamp_ns: int, features: Mapping[str, FloatArray], phase: str | None = None
    ) -> Verdict:
        """Judge one window by the fused vector; the modalities are scored beside it."""
        if self._wanted:
            self._gather(features)
        if not self._baseline:
            progress = f", gathering {self._seen} of {self._wanted}" if self._wanted else ""
            limit = 1.0 - self.threshold
            return Verdict(
                Level.STALE, float("nan"), limit, float("nan"), False,
                message=f"uncalibrated{progress}",
            )  # fmt: skip
        return self._judge(features)

    def _gather(self, features: Mapping[str, FloatArray]) -> None:
        for key, value in features.items():
            total, count = self._sums.get(key, (np.zeros(len(value)), 0))
            self._sums[key] = total + value, count + 1
        self._seen += 1
        if self._seen >= self._wanted:
            self._adopt(
                {k: (s / n).astype(np.float32) for k, (s, n) in sorted(self._sums.items())}
            )
            self._sums, self._wanted, self._seen = {}, 0, 0
            self.fault = artefact.keep(self.save, self.path)

    def _judge(self, features: Mapping[str, FloatArray]) -> Verdict:
        limit = 1.0 - self.threshold
        scores: dict[str, float] = {}
        for key, value in features.items():
            mean = self._baseline.get(key)
            if mean is not None and len(mean) == len(value):
                name = modality_of(key)
                scores[name] = max(_distance(value, mean), scores.get(name, 0.0))
        fused = scores.pop(FUSED, float("nan"))
        if np.isnan(fused):
            return Verdict(
                Level.STALE, float("nan"), limit, float("nan"), self.debounce.active,
                calibration_id=self._id, message="no embedding to compare with the baseline",
            )  # fmt: skip
        flagged = fused > limit
        alarm = self.debounce.update(flagged)
        level = Level.ERROR if alarm else Level.WARN if flagged else Level.OK
        may = [m for m in scores if self.modalities is None or m in self.modalities]
        top = max(may, key=scores.__getitem__) if flagged and may else ""
        return Verdict(
            level=level,
            score=fused,
            threshold=limit,
            p=float("nan"),
            flag=alarm,
            severity=min(max((fused - limit) / max(1.0 - limit, 1e-6), 0.0), 1.0),
            top=top,
            modalities={
                name: ModalityVerdict(Level.WARN if s > limit else Level.OK, s, limit)
                for name, s in scores.items()
            },
            calibration_id=self._id,
            message=f"cosine {1.0 - fused:.3f} to the baseline, flagged below "
            f"{self.threshold:.3f}",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the baseline to a file.

        Raises:
            CalibrationError: there is none.
        """
        if not self._baseline:
            raise CalibrationError("a baseline must be gathered before it is saved, there is none")
        header = {"kind": KIND, "version": artefact.VERSION, "context": self.context}
        artefact.write(path, header, self._baseline)

    def load(
        self, path: str | os.PathLike[str], context: Mapping[str, object] | None = None
    ) -> None:
        """Read a baseline from a file; with a context, refuse one made for another system.

        Raises:
            CalibrationError: the file is not a baseline or was made for another system.
        """
        header, arrays = artefact.read(path, KIND)
        if context is not None:
            artefact.check_context(header.get("context", {}), context)
        vectors = arrays.values()
        if FUSED not in arrays or not all(v.ndim == 1 and np.isfinite(v).all() for v in vectors):
            raise CalibrationError(
                f"{os.fspath(path)} is damaged: not finite vectors of a baseline"
            )
        self.clear_baseline()
        self.context = dict(header.get("context", {}))
        self._adopt(arrays)

    def _adopt(self, baseline: dict[str, FloatArray]) -> None:
        self._baseline = baseline
        digest = hashlib.sha256()
        for key, value in sorted(baseline.items()):
            digest.update(key.encode() + value.tobytes())
        self._id = digest.hexdigest()[:12]
        self.debounce.reset()


def _distance(a: FloatArray, b: FloatArray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(np.clip(np.dot(a, b) / size, -1.0, 1.0)) if size > 0 else 1.0
