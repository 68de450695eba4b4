"""Window-level figures; no point adjustment, no threshold chosen on the data it is judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

FloatArray = npt.NDArray[np.floating]


def auroc(normal: FloatArray, odd: FloatArray) -> float:
    """Return the probability that an odd window scores higher than a normal one, ties a half."""
    ranks = rankdata(np.concatenate((normal, odd)))
    high = ranks[len(normal) :].sum() - len(odd) * (len(odd) + 1) / 2.0
    return float(high / (len(normal) * len(odd)))


def auprc(normal: FloatArray, odd: FloatArray) -> float:
    """Return the average precision; windows of equal score enter together."""
    scores = np.concatenate((normal, odd))
    truth = np.r_[np.zeros(len(normal)), np.ones(len(odd))]
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    precision = hits[last] / (last + 1)
    return float((np.diff(np.r_[0.0, hits[last]]) * precision).sum() / len(odd))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation and range over seeds, NaN left out."""
    finite = np.asarray([v for v in values if np.isfinite(v)])
    if not len(finite):
        return {}
    return {
        "mean": round(float(finite.mean()), 4),
        "std": round(float(finite.std()), 4),
        "min": round(float(finite.min()), 4),
        "max": round(float(finite.max()), 4),
    }


def spread(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return `summary` of each figure over the rows that have it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: summary([row[name] for row in rows if name in row]) for name in names}
