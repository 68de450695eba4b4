"""The calibrated detector as the node uses it: one window at a time, debounced, with drift."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly import artefact
from mmfuse_ros.anomaly.calibration import EXTRAPOLATION, MIN_UNITS
from mmfuse_ros.anomaly.debounce import Debounce, severity
from mmfuse_ros.anomaly.detector import Detector
from mmfuse_ros.anomaly.drift import DriftMonitor
from mmfuse_ros.anomaly.gathering import Gathering, LiveFit
from mmfuse_ros.anomaly.recordings import BLOCK_S
from mmfuse_ros.config import DEFAULT_ALPHA, AnomalyConfig
from mmfuse_ros.errors import CalibrationError, ConfigError
from mmfuse_ros.samples import NS_PER_S, Level, ModalityVerdict, Verdict

FloatArray = npt.NDArray[np.floating]

_DRIFT_SPACING_NS = round(BLOCK_S * NS_PER_S)
_FITTING = "fitting the calibration gathered live"
_MARGIN_BLOCKS = 0.2  # windows come unevenly; what is left over joins the last block


class CalibratedMonitor:
    """Scores windows with a `Detector`, debounces the flags and watches for drift.

    Without a detector every verdict is STALE, "uncalibrated".

    Args:
        detector: a calibration, or None.
        debounce: from flagged windows to an alarm.
        context: what the features are made with; goes into calibrations gathered live.
        alpha: false-alarm probability of a window, for calibrations gathered live.
        modalities: those that may raise an alarm; all where None.
        window_s: seconds that the longest window looks back.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        debounce: Debounce | None = None,
        context: Mapping[str, object] | None = None,
        *,
        alpha: float = DEFAULT_ALPHA,
        modalities: tuple[str, ...] | None = None,
        window_s: float = 3.0,
    ) -> None:
        self.detector = detector
        self.debounce = debounce or Debounce()
        self.drift = DriftMonitor()
        self.context = dict(context or {})
        self.alpha = alpha if detector is None else detector.alpha
        self.modalities = modalities
        self.window_s = window_s
        self.path = ""
        self.fault = ""
        self._gathering: Gathering | None = None
        self._fit: LiveFit | None = None
        self._failure = ""
        self._last_drift_ns: int | None = None
        self._select(detector)

    @classmethod
    def from_config(
        cls, config: AnomalyConfig, context: Mapping[str, object]
    ) -> CalibratedMonitor:
        """Make one from parameters; see `make_monitor`."""
        detector = None
        if artefact.exists(config.calibration):
            detector = Detector.load(config.calibration)
            detector.check_context(context)
            detector.alpha = _alpha(config, detector)
        spans = [v for k, v in context.items() if k.endswith("window_s")]
        monitor = cls(
            detector,
            Debounce(config.debounce_k, config.debounce_n),
            context,
            alpha=_alpha(config, detector),
            modalities=config.modalities,
        )
        monitor.path = config.calibration
        monitor.window_s = max([float(s) for s in spans if isinstance(s, (int, float))] or [3.0])
        return monitor

    @property
    def calibration_id(self) -> str:
        """The detector's id, "" without one."""
        return self.detector.id if self.detector is not None else ""

    def configure(self, config: AnomalyConfig) -> None:
        """Take alpha, debounce and modalities; see `Monitor.configure`."""
        if self.detector is not None:
            # May refuse: before anything else is changed.
            self.detector.alpha = _alpha(config, self.detector)
        self.alpha = _alpha(config, self.detector)
        self.modalities = config.modalities
        self._select(self.detector)
        self.debounce = self.debounce.changed(config.debounce_k, config.debounce_n)

    def check(self, config: AnomalyConfig) -> None:
        """Refuse an alpha that the calibration cannot support; see `Monitor.check`."""
        detector = self.detector
        if detector is not None:
            detector.check_alpha(_alpha(config, detector))

    def reset(self) -> None:
        """Forget recent windows, the alarm and the drift; keep the calibration."""
        self.debounce.reset()
        self.drift.reset()
        self._last_drift_ns = None

    def begin_baseline(self, count: int) -> None:
        """Gather a calibration from the coming windows and fit it when there are enough.

        Enough is `count` windows and as many 10 s blocks as `alpha` needs (nine for 1 %). The fit
        runs beside the windows; what was calibrated before stays in use until it is done.

        Raises:
            ConfigError: count is below 1.
        """
        if count < 1:
            raise ConfigError(f"a baseline must have at least 1 window, got {count}")
        blocks = max(MIN_UNITS, math.ceil(1.0 / (EXTRAPOLATION * self.alpha) - 1.0 - 1e-9))
        self._fit = None
        self._gathering = Gathering(count, (blocks + _MARGIN_BLOCKS) * BLOCK_S)
        self._failure = self.fault = ""

    def clear_baseline(self) -> None:
        """Drop the calibration and any that is being gathered."""
        self.detector = self._gathering = self._fit = None
        self._failure = self.fault = ""
        self.reset()

    def observe(
        self, stamp_ns: int, features: Mapping[str, FloatArray], phase: str | None = None
    ) -> Verdict:
        """Judge one window; "embedding" is not used, blocks that were not calibrated neither."""
        progress = self._gather(stamp_ns, features)
        if self.detector is None:
            return self._stale("uncalibrated" + (f", {progress}" if progress else self._failure))
        detector = self.detector
        known = phase if phase and phase in detector.phases else None
        if phase and detector.phases and known is None:
            return self._stale(f"uncalibrated: phase {phase!r} was not recorded")
        rows = {k: v[None] for k, v in features.items() if k in detector.dims}
        scored = detector.score(rows, known)
        p = float(scored.p[0]) if len(scored.p) else math.nan
        if math.isnan(p):
            return self._stale("no calibrated modality is live")
        flagged = bool(scored.flag[0])
        alarm = self.debounce.update(flagged)
        asks = self._watch_drift(stamp_ns, p, flagged or alarm)
        level = Level.ERROR if alarm else Level.WARN if flagged or asks else Level.OK
        top = scored.top[0] if flagged or alarm else ""
        score = float(scored.score[0])
        message = f"p = {p:.2g}" + (f", {top} stands out" if top else "")
        if asks:
            message += "; normal operation has drifted, record it again"
        if progress:
            message += f"; {progress}"
        return Verdict(
            level=level,
            score=score,
            threshold=scored.threshold,
            p=p,
            flag=alarm,
            severity=severity(score, scored.threshold),
            top=top,
            modalities={
                name: self._modality(float(values[0]), name == top and alarm)
                for name, values in scored.modality_p.items()
                if not math.isnan(values[0])
            },
            calibration_id=detector.id,
            message=message + self._failure,
        )

    def _modality(self, p: float, blamed: bool) -> ModalityVerdict:
        assert self.detector is not None
        odd = p <= self.detector.alpha
        level = Level.ERROR if blamed else Level.WARN if odd else Level.OK
        # From zero, not negated: of p = 1 that would be -0.
        return ModalityVerdict(level, 0.0 - math.log10(p), -math.log10(self.detector.alpha), p)

    def _stale(self, message: str) -> Verdict:
        return Verdict(
            Level.STALE,
            math.nan,
            -math.log10(self.alpha),
            math.nan,
            self.debounce.active,
            calibration_id=self.calibration_id,
            message=message,
        )

    def _select(self, detector: Detector | None) -> None:
        if detector is not None and self.modalities is not None:
            detector.enable(set(self.modalities) & set(detector.modalities))

    def _watch_drift(self, stamp_ns: int, p: float, odd: bool) -> bool:
        last = self._last_drift_ns
        due = last is None or not 0 <= stamp_ns - last < _DRIFT_SPACING_NS
        if due and not odd:
            self._last_drift_ns = stamp_ns
            return self.drift.update(p)
        return self.drift.asks

    def _gather(self, stamp_ns: int, features: Mapping[str, FloatArray]) -> str:
        if self._fit is not None:
            return self._adopt(self._fit)
        if self._gathering is None:
            return ""
        self._gathering.add(stamp_ns, features)
        if not self._gathering.enough:
            return self._gathering.progress
        self._fit = LiveFit(self._gathering, self.alpha, self.window_s, self.context)
        self._gathering = None
        return _FITTING

    def _adopt(self, fit: LiveFit) -> str:
        if not fit.done:
            return _FITTING
        self._fit = None
        try:
            if fit.detector is None:
                raise CalibrationError(fit.failure)
            fit.detector.alpha = self.alpha  # which may have been changed since
        except CalibrationError as error:
            self._failure = f"; the calibration gathered live failed: {error}"
            return ""
        self._select(fit.detector)
        self.detector = fit.detector
        self.reset()
        self.fault = artefact.keep(fit.detector.save, self.path)
        return ""


def _alpha(config: AnomalyConfig, detector: Detector | None) -> float:
    """Return the alpha that is asked for, or the calibration's own."""
    return config.alpha or (DEFAULT_ALPHA if detector is None else detector.fitted_alpha)
