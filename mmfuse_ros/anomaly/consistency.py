"""Whether streams that are each normal belong together: each predicted from the others.

Every modality is reduced to its leading whitened components. A ridge regression predicts those of
one modality from those of the others; what normal recordings leave unexplained, each left out in
turn, says how large a residual is ordinary. Only what can be predicted counts: where streams do
not depend on each other in time, the model has no skill and says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from mmfuse_ros.anomaly.calibration import fold_units
from mmfuse_ros.errors import CalibrationError

FloatArray = npt.NDArray[np.floating]

COMPONENTS = 16
MIN_SEPARATION = 0.65  # AUROC between left-out recordings and the same with one stream shifted
MIN_SKILL = 0.05  # variance explained on left-out units, mean over a modality's components
_MAX_FOLDS = 16
_RIDGE = 0.02  # of the mean variance of the predictors
_CLIP = 4.0


@dataclass(frozen=True)
class Consistency:
    """Ridge maps between modalities and what they leave.

    Attributes:
        names: modalities in the order of `columns`.
        columns: (M + 1,) where each modality's components begin and end.
        maps: (1 + P, P) predicts every component from all others' components and a constant; the
            blocks that would predict a modality from itself are zero.
        skill: (P,) share of variance explained on left-out units, 0 where there is none.
        variance: (P,) of the left-out residuals.
    """

    names: tuple[str, ...]
    columns: npt.NDArray[np.intp]
    maps: FloatArray
    skill: FloatArray
    variance: FloatArray

    @property
    def skills(self) -> dict[str, float]:
        """Mean share of variance explained, by modality."""
        bounds = itertools.pairwise(self.columns)
        return {
            name: float(self.skill[begin:end].mean())
            for name, (begin, end) in zip(self.names, bounds, strict=True)
        }

    def check(self, widths: Mapping[str, int]) -> None:
        """Refuse arrays that do not fit modalities of so many components (a damaged file)."""
        columns = np.cumsum([0] + [widths[name] for name in self.names])
        count = int(columns[-1])
        shapes = [self.maps.shape, self.skill.shape, self.variance.shape]
        if (
            shapes != [(1 + count, count), (count,), (count,)]
            or not np.array_equal(self.columns, columns)
            or not np.isfinite(self.maps).all()
            or not ((self.skill >= 0) & (self.skill <= 1)).all()
            or not (np.isfinite(self.variance) & (self.variance > 0)).all()
        ):
            raise CalibrationError("the calibration is damaged: its consistency does not fit")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything but the names, as arrays by name."""
        return {
            "columns": self.columns.astype(np.int32),
            "maps": self.maps,
            "skill": self.skill,
            "variance": self.variance,
        }

    def log_score(self, parts: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Return the log of the summed residual, (n,), and each modality's share, (n, M).

        parts: (n, q) components by modality; all of `names` must be there.
        """
        x = np.clip(np.concatenate([parts[name] for name in self.names], axis=1), -_CLIP, _CLIP)
        residual = x - (x @ self.maps[1:] + self.maps[0])
        strange = self.skill * np.square(residual) / self.variance  # (n, P)
        share = np.add.reduceat(strange, self.columns[:-1], axis=1)
        return np.log(share.sum(axis=1) / max(self.skill.sum(), 1e-9) + 1e-4), share


def fit_consistency(
    parts: Mapping[str, FloatArray], unit: npt.NDArray[np.intp], min_skill: float = MIN_SKILL
) -> Consistency | None:
    """Fit on rows where every modality is present.

    parts: (N, q) components by modality; unit: (N,). Skill and residual variance are those of
    units left out of the ridge. None where fewer than two modalities or two units are given, or
    where no modality is predicted with a skill of `min_skill`.
    """
    names = tuple(sorted(parts))
    units = np.unique(unit)
    if len(names) < 2 or len(units) < 2:
        return None
    columns = np.cumsum([0] + [parts[name].shape[1] for name in names])
    x = np.clip(np.concatenate([parts[name] for name in names], axis=1), -_CLIP, _CLIP)
    x = x.astype(np.float64)
    weight = 1.0 / np.bincount(np.searchsorted(units, unit))[np.searchsorted(units, unit)]
    residual = np.empty_like(x)
    base = np.empty_like(x)
    for fold in fold_units(len(units), _MAX_FOLDS):
        held = np.isin(unit, units[fold])
        maps = _solve(x[~held], weight[~held], columns)
        residual[held] = x[held] - (x[held] @ maps[1:] + maps[0])
        base[held] = x[held] - np.average(x[~held], axis=0, weights=weight[~held])
    left = np.average(np.square(residual), axis=0, weights=weight)
    plain = np.average(np.square(base), axis=0, weights=weight)
    skill = np.maximum(1.0 - left / np.maximum(plain, 1e-9), 0.0)
    model = Consistency(
        names,
        columns,
        _solve(x, weight, columns).astype(np.float32),
        skill.astype(np.float32),
        np.maximum(left, 1e-6).astype(np.float32),
    )
    return model if any(share >= min_skill for share in model.skills.values()) else None


def separation(proper: FloatArray, shifted: FloatArray) -> float:
    """Return the probability that a shifted row scores higher than a proper one (AUROC)."""
    ranks = rankdata(np.concatenate((proper, shifted)))[len(proper) :]
    high = ranks.sum() - len(shifted) * (len(shifted) + 1) / 2.0
    return float(high / (len(proper) * len(shifted)))


def _solve(x: FloatArray, weight: FloatArray, columns: npt.NDArray[np.intp]) -> FloatArray:
    mean = np.average(x, axis=0, weights=weight)
    centred = x - mean
    gram = centred.T @ (centred * weight[:, None])
    ridge = _RIDGE * np.trace(gram) / len(gram)
    maps = np.zeros((len(gram) + 1, len(gram)))
    for begin, end in itertools.pairwise(columns):
        others = np.r_[0:begin, end : len(gram)]
        inner = gram[np.ix_(others, others)] + ridge * np.eye(len(others))
        maps[1 + others, begin:end] = np.linalg.solve(inner, gram[others, begin:end])
    maps[0] = mean - mean @ maps[1:]
    return maps
