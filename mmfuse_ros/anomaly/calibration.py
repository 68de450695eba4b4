"""From a score to a probability: what normal recordings, each left out in turn, scored.

The unit of calibration is a recording. Windows of one recording resemble each other, most of all
where they overlap, and count together as one unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtr

from mmfuse_ros.errors import CalibrationError

FloatArray = npt.NDArray[np.floating]

MIN_UNITS = 3
EXTRAPOLATION = 10.0
"""How far below 1 / (units + 1) the tail model may be asked to speak: one decade."""
_MAX_DOF = 30.0
_P_MIN = 1e-300
_POWERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_BEND = 40.0  # robust deviations


@dataclass(frozen=True)
class Promise:
    """What a calibration can promise.

    Attributes:
        units: independent units (recordings, or blocks of a single one).
        unit: "recording" or "block".
        alpha: probability with which a normal window is flagged.
        counted_alpha: 1 / (units + 1), the smallest alpha that counting alone supports, without
            any assumption but that recordings are exchangeable.
        smallest_alpha: the smallest alpha this calibration accepts; between it and
            `counted_alpha` the tail model speaks (see `TailModel`).
        false_alarms_per_hour: alarms per hour, counted on the left-out normal windows after the
            debounce; NaN where the time between windows is unknown.
        false_alarms_per_hour_upper: 95 % upper confidence bound of the same.
        hours: hours of normal data behind it; NaN where unknown.
    """

    units: int
    unit: str
    alpha: float
    counted_alpha: float
    smallest_alpha: float
    false_alarms_per_hour: float = math.nan
    false_alarms_per_hour_upper: float = math.nan
    hours: float = math.nan

    @property
    def extrapolated(self) -> bool:
        """Whether alpha lies below what counting alone supports."""
        return self.alpha < self.counted_alpha * (1 - 1e-9)

    def check(self) -> None:
        """Refuse values of another type (a damaged file)."""
        values = vars(self)
        rates = [v for k, v in values.items() if k not in ("units", "unit")]
        if (
            type(self.units) is not int
            or self.unit not in ("recording", "block")
            or not all(type(v) in (int, float) and not v < 0 for v in rates)
        ):
            raise CalibrationError(f"the calibration is damaged: it promises {values}")

    def lines(self) -> list[str]:
        """Return the promise as lines for a person."""
        basis = (
            f"alpha {self.alpha:g}: below 1/(n+1) = {self.counted_alpha:.4f}, so it rests on the "
            "tail model (normal log scores between recordings)"
            if self.extrapolated
            else f"alpha {self.alpha:g}: supported by counting (exchangeable {self.unit}s)"
        )
        lines = [
            f"{self.units} independent {self.unit}s; smallest alpha by counting "
            f"{self.counted_alpha:.4f}, with the tail model {self.smallest_alpha:.4f}",
            basis,
        ]
        if math.isfinite(self.false_alarms_per_hour):
            lines.append(
                f"expected false alarms {self.false_alarms_per_hour:.1f} per hour after the "
                f"debounce (95 % upper bound {self.false_alarms_per_hour_upper:.1f}, from "
                f"{self.hours * 60:.1f} minutes of left-out normal data)"
            )
        return lines


def check_alpha(alpha: float, units: int, unit: str = "recording") -> None:
    """Refuse an alpha that so many independent units cannot support.

    Raises:
        CalibrationError: alpha is outside (0, 1), there are fewer than three units, or alpha is
            below 1 / (10 (units + 1)); the message says how much more to record.
    """
    if not 0.0 < alpha < 1.0:
        raise CalibrationError(f"alpha must be between 0 and 1, got {alpha}")
    needed = max(MIN_UNITS, math.ceil(1.0 / (EXTRAPOLATION * alpha) - 1.0 - 1e-9))
    counted = max(MIN_UNITS, math.ceil(1.0 / alpha - 1.0 - 1e-9))
    more = "10 s blocks (record longer)" if unit == "block" else "recordings"
    if units < MIN_UNITS:
        raise CalibrationError(
            f"at least {MIN_UNITS} independent {unit}s are needed, got {units}; "
            f"add {needed - units} more {more}"
        )
    if units < needed:
        raise CalibrationError(
            f"alpha must be at least {smallest_alpha(units):.4f} with {units} independent "
            f"{unit}s, got {alpha:g}; add {needed - units} more {more} "
            f"({counted - units} more to do without the tail model) or raise alpha"
        )


def smallest_alpha(units: int) -> float:
    """Return the smallest alpha that so many units support with the tail model."""
    return 1.0 / (EXTRAPOLATION * (units + 1))


class TailModel:
    """The probability of a score in normal operation, by counting and by a t tail.

    `values` are left-out scores on a logarithmic scale, `unit` says to which unit each belongs.

    By counting: the fraction of left-out windows that score as high, every unit with the same
    weight (the pooled distribution of Dunn, Wasserman and Ramdas, "Distribution-free prediction
    sets for two-layer hierarchical models", 2022; Lee, Barber and Willett, "Distribution-free
    inference with hierarchical data", 2023). It says nothing beyond the highest left-out score.

    By the tail: units differ by a normal effect, windows within a unit by another; then the
    score of a window of a new unit, less the units' mean, over its predictive deviation follows
    a t distribution of units - 1 degrees of freedom (approximately: Satterthwaite's rule would
    give more, which would be less careful; at most 30).

    Before that, scores are brought closer to normal by the power transform of Box and Cox (1964)
    of the exponentiated score, its exponent between 0 (the logarithm itself) and a half chosen by
    likelihood; squared distances of normal data want about a third (Wilson and Hilferty 1931).

    The larger of the two is the p-value: the tail never claims a score to be rarer than it was.
    """

    def __init__(self, values: FloatArray, unit: npt.NDArray[np.integer]) -> None:
        values = np.asarray(values, dtype=np.float64)
        _, index, counts = np.unique(unit, return_inverse=True, return_counts=True)
        self.units = len(counts)
        if self.units < 2:
            raise CalibrationError(f"at least 2 units are needed, got {self.units}")
        weight = 1.0 / (counts[index] * self.units)
        self._origin = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - self._origin)))
        self._unit = max(spread, 1e-3)
        self.power = self._most_normal(values, weight)
        values = self._transform(values)
        means = np.bincount(index, values) / counts
        within = np.bincount(index, np.square(values - means[index])) / counts
        self.centre = float(means.mean())
        between = float(means.var(ddof=1))
        variance = between * (1.0 + 1.0 / self.units) + float(within.mean())
        self.deviation = max(math.sqrt(variance), 1e-6)
        self.dof = min(self.units - 1.0, _MAX_DOF)
        order = np.argsort(values, kind="stable")
        survival = np.cumsum(weight[order][::-1])[::-1]
        # Survival just at each left-out value: it, its equals and all above.
        self._sorted, first = np.unique(values[order], return_index=True)
        self._survival = survival[first]

    def p(self, values: FloatArray) -> FloatArray:
        """Return p-values in (0, 1] of scores of any shape; NaN stays NaN."""
        return self.both(values)[0]

    def both(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return p-values, and those of the t tail alone, which never stop at a step."""
        values = self._transform(np.asarray(values, dtype=np.float64))
        # np.minimum and np.maximum: np.clip costs several times as much for one window.
        standard = np.minimum((values - self.centre) / self.deviation, 1e8)
        tail = np.maximum(stdtr(self.dof, -np.maximum(standard, -1e8)), _P_MIN)
        count = np.interp(values, self._sorted, self._survival, left=1.0, right=0.0)
        return np.maximum(tail, count), tail

    def counted_p(self, values: FloatArray) -> FloatArray:
        """Return the p-value by counting alone, never below 1 / (units + 1)."""
        values = self._transform(np.asarray(values, dtype=np.float64))
        at = np.searchsorted(self._sorted, values, side="left")
        survival = np.append(self._survival, 0.0)[at]
        return (1.0 + self.units * survival) / (self.units + 1.0)

    def _transform(self, values: FloatArray, power: float | None = None) -> FloatArray:
        power = self.power if power is None else power
        # Far beyond anything seen the transform only has to stay increasing and finite.
        z = np.maximum(np.minimum((values - self._origin) / self._unit, 1e3), -1e3)
        if power == 0.0:
            return z
        bent = np.expm1(power * np.minimum(z, _BEND)) / power
        return bent + np.maximum(z - _BEND, 0.0) * math.exp(power * _BEND)

    def _most_normal(self, values: FloatArray, weight: FloatArray) -> float:
        best, chosen = -math.inf, 0.0
        z = np.clip((values - self._origin) / self._unit, -8.0, 8.0)
        for power in _POWERS:
            bent = self._transform(values, power)
            mean = float(weight @ bent)
            variance = max(float(weight @ np.square(bent - mean)), 1e-12)
            likelihood = power * float(weight @ z) - 0.5 * math.log(variance)
            if likelihood > best + 1e-9:
                best, chosen = likelihood, power
        return chosen


def surprise(p: FloatArray) -> FloatArray:
    """Return the normal deviate whose upper tail is p: about normal in normal operation."""
    return -ndtri(np.minimum(np.maximum(p, _P_MIN), 1.0 - 1e-12))


def split_blocks(length: int, block: int) -> npt.NDArray[np.intp]:
    """Number the blocks of a single recording: (length,) of block indices.

    A remainder shorter than half a block joins the block before it.
    """
    index = np.arange(length) // max(block, 1)
    if length > block and length % block and length % block < block / 2:
        index[index == index[-1]] -= 1
    return index


def fold_units(units: int, limit: int) -> list[list[int]]:
    """Split unit numbers into at most `limit` folds, neighbours apart where they can be."""
    folds = min(units, limit)
    return [list(range(start, units, folds)) for start in range(folds)]


def upper_rate(events: int, hours: float) -> float:
    """Return the 95 % upper confidence bound of a Poisson rate (Garwood 1936)."""
    from scipy.special import gammaincinv

    return float(gammaincinv(events + 1, 0.95)) / hours


def concatenate(parts: Sequence[FloatArray]) -> FloatArray:
    """Join arrays of (n_k, ...) along the first axis; an empty list gives an empty array."""
    return np.concatenate(parts) if parts else np.empty(0)
