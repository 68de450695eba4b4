"""What the detector is compared with: the fixed cosine rule and plain k-NN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly import Detector

FloatArray = npt.NDArray[np.floating]
Features = Mapping[str, FloatArray]


class Method(Protocol):
    """Fitted on normal recordings; scores windows and flags them."""

    def judge(self, features: Features) -> tuple[FloatArray, npt.NDArray[np.bool_], list[str]]:
        """Return score, flag and top modality of each window."""


class Calibrated:
    """The detector of this package."""

    def __init__(self, recordings: Sequence[Features], alpha: float) -> None:
        self.detector = Detector.fit(list(recordings), alpha)

    def judge(self, features: Features) -> tuple[FloatArray, npt.NDArray[np.bool_], list[str]]:
        result = self.detector.score(features)
        return result.score, result.flag, result.top


class CosineRule:
    """Cosine of the concatenated features to their mean, flagged below 0.85, whatever alpha.

    Each modality is brought to unit length first. An untrained linear fusion keeps angles on
    average, so that this is what the fixed rule sees of a fused vector at best.
    """

    def __init__(self, recordings: Sequence[Features], alpha: float) -> None:
        self._keys = sorted(recordings[0])
        self._means = {
            key: _unit(np.concatenate([r[key] for r in recordings])).mean(axis=0)
            for key in self._keys
        }

    def judge(self, features: Features) -> tuple[FloatArray, npt.NDArray[np.bool_], list[str]]:
        keys = [key for key in self._keys if key in features]
        fused = np.concatenate([_unit(features[key]) for key in keys], axis=1)
        mean = np.concatenate([self._means[key] for key in keys])
        cosine = _unit(fused) @ (mean / np.linalg.norm(mean))
        each = np.stack(
            [
                _unit(features[key]) @ (self._means[key] / np.linalg.norm(self._means[key]))
                for key in keys
            ]
        )
        return 1.0 - cosine, cosine < 0.85, [keys[i] for i in each.argmin(axis=0)]


class PlainKnn:
    """Nearest standardised window, threshold at a quantile of leave-one-window-out distances.

    This is the usual way, and it takes overlapping windows as if they were independent.
    """

    def __init__(self, recordings: Sequence[Features], alpha: float) -> None:
        rows = {
            key: np.concatenate([r[key] for r in recordings]).astype(np.float64)
            for key in sorted(recordings[0])
        }
        self._centre = {key: x.mean(axis=0) for key, x in rows.items()}
        self._scale = {key: np.maximum(x.std(axis=0), 1e-6) for key, x in rows.items()}
        self._bank = {key: self._standard(key, x) for key, x in rows.items()}
        left_out = np.sum([_squared(bank, bank) for bank in self._bank.values()], axis=0)
        np.fill_diagonal(left_out, np.inf)
        self._limit = float(np.quantile(left_out.min(axis=1), 1.0 - alpha))

    def judge(self, features: Features) -> tuple[FloatArray, npt.NDArray[np.bool_], list[str]]:
        keys = [key for key in self._bank if key in features]
        each = [_squared(self._standard(key, features[key]), self._bank[key]) for key in keys]
        score = np.sum(each, axis=0).min(axis=1)
        alone = np.stack([part.min(axis=1) for part in each])
        return score, score > self._limit, [keys[i] for i in alone.argmax(axis=0)]

    def _standard(self, key: str, x: FloatArray) -> FloatArray:
        return (x - self._centre[key]) / self._scale[key] / np.sqrt(x.shape[1])


METHODS: dict[str, type[Calibrated] | type[CosineRule] | type[PlainKnn]] = {
    "calibrated": Calibrated,
    "cosine_0.85": CosineRule,
    "plain_knn": PlainKnn,
}


def _unit(x: FloatArray) -> FloatArray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _squared(a: FloatArray, b: FloatArray) -> FloatArray:
    lengths = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    return np.maximum(lengths - 2.0 * a @ b.T, 0.0)
