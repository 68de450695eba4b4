"""The detector: fit on normal recordings, score windows, say which sensor stands out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly import artefact
from mmfuse_ros.anomaly.calibration import Promise, check_alpha, smallest_alpha, upper_rate
from mmfuse_ros.anomaly.debounce import Debounce
from mmfuse_ros.anomaly.fitting import fit_calibration
from mmfuse_ros.anomaly.joint import Calibration
from mmfuse_ros.anomaly.recordings import BLOCK_S, Features, Table, tabulate, to_features
from mmfuse_ros.errors import CalibrationError, InputError

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]

ALL_PHASES = ""


@dataclass(frozen=True)
class Scored:
    """What the detector says of n windows.

    Attributes:
        p: (n,) probability of a window this strange in normal operation, corrected for the number
            of live modalities; NaN where no modality is live.
        score: (n,) minus the decimal logarithm of p: 0 is ordinary, 2 is one in a hundred.
        threshold: the score of alpha.
        flag: (n,) whether p <= alpha, window by window, before any debounce.
        top: n names, the modality that stands out most, "" where none is live.
        modality_p: (n,) by modality; NaN where it is absent.
        consistency_p: (n,) p-value of how well the modalities fit together; NaN where unknown.
    """

    p: FloatArray
    score: FloatArray
    threshold: float
    flag: BoolArray
    top: list[str]
    modality_p: Mapping[str, FloatArray]
    consistency_p: FloatArray


@dataclass
class Detector:
    """Calibrated anomaly detector; make one with `Detector.fit` or `Detector.load`.

    Attributes:
        calibrations: by phase; "" holds the one fitted on everything.
        promises: what each of them can promise.
        dims: columns of each feature block.
        context: what the features were made with (model, weights, precision, windows), compared
            by `check_context`.
    """

    calibrations: Mapping[str, Calibration]
    promises: Mapping[str, Promise]
    dims: Mapping[str, int]
    context: Mapping[str, object] = field(default_factory=dict)
    _alpha: float = 0.05
    _disabled: frozenset[str] = frozenset()

    @classmethod
    def fit(
        cls,
        recordings: Sequence[Features],
        alpha: float = 0.05,
        *,
        unit: str = "auto",
        hop_s: float | None = None,
        window_s: float | None = None,
        block_windows: int | None = None,
        phases: Sequence[str | Sequence[str]] | None = None,
        context: Mapping[str, object] | None = None,
        consistency: bool = True,
    ) -> Detector:
        """Fit on recordings of normal operation, in closed form.

        The same input gives the same bits.

        Args:
            recordings: one {key: (n_windows, dim) float32} per recording, windows in time order.
                What stands before ":" in a key is the modality, so that "audio" and
                "audio:log_mel" are two views of one. A missing key, or a row with NaN, is an
                absent modality: it is left out, never imputed.
            alpha: probability with which a normal window may be flagged.
            unit: what counts as independent: "recording", "block", or "auto", which takes
                recordings where there are several and blocks of a single one.
            hop_s: seconds between windows; with it blocks last 10 s and rates are per hour.
            window_s: seconds a window looks back; with hop_s, windows that reach into the block
                before theirs are left out.
            block_windows: windows per block, instead of 10 s (or, without hop_s, of a twentieth
                of the recording, with a tenth of a block left out between blocks).
            phases: a label per recording, or one per window of each; each label gets a
                calibration of its own beside the one of all.
            context: see `check_context`.
            consistency: whether to model how modalities depend on each other.

        What is guaranteed: see docs/anomaly.md. In one sentence: for recordings exchangeable with
        the given ones, a randomly chosen window is flagged with a probability of about alpha;
        about, because each left-out score comes from a model with one recording less (the
        jackknife of Barber, Candes, Ramdas and Tibshirani 2021), and because below
        1 / (units + 1) a tail model speaks instead of a count.

        Raises:
            InputError: recordings or labels have wrong shapes.
            CalibrationError: alpha is not supported by so few independent units.
        """
        if not 0.0 < alpha < 1.0:
            raise CalibrationError(f"alpha must be between 0 and 1, got {alpha}")
        guard = 0
        if hop_s is not None:
            if not hop_s > 0:
                raise InputError(f"hop_s must be positive, got {hop_s}")
            block_windows = block_windows or max(1, round(BLOCK_S / hop_s))
            guard = max(0, int(np.ceil((window_s or hop_s) / hop_s - 1e-9)) - 1)
        table = tabulate(
            recordings, unit=unit, block_windows=block_windows, guard=guard, phases=phases
        )
        calibrations, promises = {}, {}
        labels = [ALL_PHASES, *sorted(set(table.phase.tolist()) - {ALL_PHASES})]
        for phase in labels:
            part = table if phase == ALL_PHASES else table.where(table.phase == phase)
            try:
                check_alpha(alpha, part.units, part.unit_kind)
                calibrations[phase] = fit_calibration(part, consistency, len(labels))
            except CalibrationError as error:
                if phase == ALL_PHASES:
                    raise
                raise CalibrationError(f"phase {phase!r}: {error}") from error
            promises[phase] = _promise(calibrations[phase], part, alpha, hop_s)
        dims = {key: value.shape[1] for key, value in sorted(table.blocks.items())}
        return cls(calibrations, promises, dims, dict(context or {}), alpha)

    @property
    def alpha(self) -> float:
        """Probability with which a normal window may be flagged; may be set at run time."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.check_alpha(value)
        self._alpha = float(value)

    def check_alpha(self, value: float) -> None:
        """Raise CalibrationError where an alpha asks more than the calibration can promise."""
        for promise in self.promises.values():
            check_alpha(value, promise.units, promise.unit)

    @property
    def fitted_alpha(self) -> float:
        """The alpha that the calibration was fitted for."""
        return self.promises[ALL_PHASES].alpha

    @property
    def promise(self) -> Promise:
        """What the calibration of all phases can promise at the present alpha."""
        return replace(self.promises[ALL_PHASES], alpha=self._alpha)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it was fitted on, sorted."""
        return self.calibrations[ALL_PHASES].modalities

    @property
    def phases(self) -> tuple[str, ...]:
        """The labels that have a calibration of their own."""
        return tuple(phase for phase in self.calibrations if phase != ALL_PHASES)

    @property
    def enabled(self) -> tuple[str, ...]:
        """The modalities that take part in `p` and `flag`."""
        return tuple(name for name in self.modalities if name not in self._disabled)

    def enable(self, modalities: Iterable[str]) -> None:
        """Let only these modalities take part; the others are scored but raise no flag.

        Raises:
            InputError: a name is not one of `modalities`.
        """
        names = set(modalities)
        unknown = sorted(names - set(self.modalities))
        if unknown:
            raise InputError(
                f"modalities must be among {', '.join(self.modalities)}, got {', '.join(unknown)}"
            )
        self._disabled = frozenset(self.modalities) - names

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of a hash of all that was fitted."""
        if not hasattr(self, "_id"):
            digest = hashlib.sha256()
            for name, array in sorted(artefact.pack(self)[1].items()):
                digest.update(name.encode() + array.tobytes())
            self._id = digest.hexdigest()[:12]
        return self._id

    def score(self, features: Features, phase: str | Sequence[str] | None = None) -> Scored:
        """Score windows: {key: (n, dim)} -> `Scored`.

        A modality whose key is missing, or whose row holds NaN, is absent: it takes no part, and
        the p-value is that of the modalities that are there.

        Args:
            features: as given to `fit`; keys that were not fitted are refused.
            phase: a label, or one per window; None scores against the calibration of all.

        Raises:
            InputError: a key, a dimension or a phase is unknown.
        """
        arrays = to_features(features)
        for key, array in arrays.items():
            if key not in self.dims:
                raise InputError(f"key {key!r} was not fitted; known: {', '.join(self.dims)}")
            if array.shape[1] != self.dims[key]:
                raise InputError(f"{key} must have {self.dims[key]} columns, got {array.shape[1]}")
        if phase is None or isinstance(phase, str):
            return self._score(arrays, phase or ALL_PHASES)
        labels = np.asarray(phase, dtype=str)
        count = len(next(iter(arrays.values()))) if arrays else 0
        if labels.shape != (count,):
            raise InputError(f"phase must have one label per window ({count}), got {labels.shape}")
        parts = {}
        for label in sorted(set(labels.tolist())):
            rows = labels == label
            parts[label] = rows, self._score({k: v[rows] for k, v in arrays.items()}, label)
        return _merge(parts, count)

    def _score(self, arrays: Mapping[str, FloatArray], phase: str) -> Scored:
        if phase not in self.calibrations:
            raise InputError(
                f"phase {phase!r} was not fitted; known: {', '.join(self.phases) or 'none'}"
            )
        p, modality_p, consistency_p, top = self.calibrations[phase].score(arrays, self._disabled)
        with np.errstate(invalid="ignore"):
            flag = p <= self._alpha
        return Scored(
            p=p,
            score=0.0 - np.log10(p),  # -log10(1) would be -0
            threshold=float(-np.log10(self._alpha)),
            flag=flag,
            top=top,
            modality_p=modality_p,
            consistency_p=consistency_p,
        )

    def check_context(self, context: Mapping[str, object]) -> None:
        """Refuse features made by another model than the calibration's.

        Raises:
            CalibrationError: a name in either context differs; every difference is named.
        """
        artefact.check_context(self.context, context)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector to one file, at once or not at all.

        Raises:
            CalibrationError: the file would be larger than 5 MB.
            OSError: it cannot be written.
        """
        artefact.write(path, *artefact.pack(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Detector:
        """Read a detector written by `save`; nothing in the file is executed.

        Raises:
            CalibrationError: it cannot be read, is no calibration, damaged, too large or newer.
        """
        return artefact.unpack(*artefact.read(path))


def _promise(calibration: Calibration, table: Table, alpha: float, hop_s: float | None) -> Promise:
    promise = Promise(
        units=table.units,
        unit=table.unit_kind,
        alpha=alpha,
        counted_alpha=1.0 / (table.units + 1),
        smallest_alpha=smallest_alpha(table.units),
    )
    if hop_s is None:
        return promise
    events = 0
    for name in np.unique(calibration.unit):
        debounce = Debounce()
        active = False
        for flag in calibration.left_out_p()[calibration.unit == name] <= alpha:
            now = debounce.update(bool(flag))
            events += now and not active
            active = now
    hours = len(calibration.unit) * hop_s / 3600.0
    return replace(
        promise,
        hours=hours,
        false_alarms_per_hour=events / hours,
        false_alarms_per_hour_upper=upper_rate(events, hours),
    )


def _merge(parts: Mapping[str, tuple[BoolArray, Scored]], count: int) -> Scored:
    def join(pick: list[tuple[BoolArray, FloatArray]]) -> FloatArray:
        out = np.full(count, np.nan)
        for rows, values in pick:
            out[rows] = values
        return out

    top = np.full(count, "", dtype=object)
    flag = np.zeros(count, dtype=bool)
    for rows, part in parts.values():
        top[rows] = part.top
        flag[rows] = part.flag
    names = sorted({name for _, part in parts.values() for name in part.modality_p})
    return Scored(
        p=join([(rows, part.p) for rows, part in parts.values()]),
        score=join([(rows, part.score) for rows, part in parts.values()]),
        threshold=next(iter(parts.values()))[1].threshold if parts else float("nan"),
        flag=flag,
        top=top.tolist(),
        modality_p={
            name: join(
                [(r, s.modality_p[name]) for r, s in parts.values() if name in s.modality_p]
            )
            for name in names
        },
        consistency_p=join([(rows, part.consistency_p) for rows, part in parts.values()]),
    )
