"""Statistics of embeddings, gathered batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmfuse_ros.analysis.arrays import Array

# An element closer to zero than this counts as inactive.
SPARSITY_BELOW = 0.01


class Moments:
    """Count, mean, spread and extremes of all elements of the rows seen, and their lengths.

    Batches are merged with the update of Chan, Golub and LeVeque (1979), which loses no digits
    where the mean is large against the spread.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.dimension = 0
        self._mean = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean
        self._low, self._high = np.inf, -np.inf
        self._small = 0
        self._lengths = 0.0

    def add(self, rows: Array) -> None:
        """Add (N, D) rows, finite, N at least 1."""
        wide = rows.astype(np.float64)
        before, new = self.rows * self.dimension, wide.size
        shift = wide.mean() - self._mean
        self._squares += np.square(wide - wide.mean()).sum()
        self._squares += shift**2 * before * new / (before + new)
        self._mean += shift * new / (before + new)
        self._low, self._high = min(self._low, wide.min()), max(self._high, wide.max())
        self._small += int(np.count_nonzero(np.abs(wide) < SPARSITY_BELOW))
        self._lengths += np.linalg.norm(wide, axis=1).sum()
        self.rows += len(rows)
        self.dimension = rows.shape[1]

    def report(self, name: str) -> dict[str, Any]:
        """Return the statistics as `EmbeddingAnalysis.embedding_statistics` names them."""
        count = self.rows * self.dimension
        return {
            "modality": name,
            "dimension": self.dimension,
            "norm": float(self._lengths / self.rows),
            "mean": float(self._mean),
            "std": float(np.sqrt(self._squares / (count - 1))) if count > 1 else 0.0,
            "min": float(self._low),
            "max": float(self._high),
            "sparsity": self._small / count,
        }
