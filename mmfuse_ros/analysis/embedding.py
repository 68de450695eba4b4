"""Measures on embeddings: similarity, distance, statistics, the share of each modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse_ros.analysis.arrays import as_rows, as_vector, unit
from mmfuse_ros.analysis.contribution import FusionHead, contributions
from mmfuse_ros.analysis.moments import Moments
from mmfuse_ros.errors import InputError

if TYPE_CHECKING:
    from mmfuse_ros.analysis.arrays import Array, Embedding


class EmbeddingAnalysis:
    """Measures on embeddings, as torch tensors or NumPy arrays of shape (D,) or (1, D)."""

    @staticmethod
    def cosine_similarity(embedding1: Embedding, embedding2: Embedding) -> float:
        """Return the cosine of the angle between two vectors, -1 to 1.

        A vector of zeros has no direction; its similarity to anything is 0.

        Raises:
            InputError: not one vector each, of one dimension, finite.
        """
        first, second = _pair(embedding1, embedding2)
        return float(np.clip(unit(first[None])[0] @ unit(second[None])[0], -1.0, 1.0))

    @staticmethod
    def euclidean_distance(embedding1: Embedding, embedding2: Embedding) -> float:
        """Return the length of the difference of two vectors.

        Raises:
            InputError: not one vector each, of one dimension, finite.
        """
        first, second = _pair(embedding1, embedding2)
        return float(np.linalg.norm(first.astype(np.float64) - second))

    @staticmethod
    def embedding_statistics(
        embedding: Embedding, modality_name: str = "embedding"
    ) -> dict[str, Any]:
        """Return modality, dimension, norm, mean, std, min, max and sparsity.

        `std` is that of a sample (n - 1); `sparsity` is the share of elements closer to zero than
        0.01. Of a batch (N, D), `norm` is the mean length of a row and the rest runs over all
        elements.
        """
        moments = Moments()
        moments.add(as_rows(embedding, modality_name))
        return moments.report(modality_name)

    @staticmethod
    def modality_contribution(
        modality_embeddings: Mapping[str, Embedding],
        fused_embedding: Embedding,
        fuse: FusionHead | None = None,
    ) -> dict[str, float]:
        """Return each modality's share of the fused vector: exact Shapley values that sum to 1.

        A negative share is kept: that modality pulls against the others. Of a batch, the mean
        over its rows. See `contribution.shapley_values` for the game, and
        `contribution.contributions` for what is returned where no fusion head is known.

        Args:
            modality_embeddings: (D_m,) or (N, D_m) by modality, as the system returned them.
            fused_embedding: (D,) or (N, D), the system's fused vector of the same input.
            fuse: the fusion head, `RoboticFeedbackSystem.fuse`; None takes the one that the
                system attached to `modality_embeddings`.

        Raises:
            InputError: the vectors do not belong together.
        """
        return contributions(modality_embeddings, fused_embedding, fuse).mean


def _pair(embedding1: Embedding, embedding2: Embedding) -> tuple[Array, Array]:
    first, second = as_vector(embedding1, "embedding1"), as_vector(embedding2, "embedding2")
    if first.shape != second.shape:
        raise InputError(
            f"two embeddings must have one dimension, got {first.size} and {second.size}; "
            "vectors of different encoders cannot be compared"
        )
    return first, second
