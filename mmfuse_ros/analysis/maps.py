"""Embeddings on a plane."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmfuse_ros.analysis.arrays import Array
from mmfuse_ros.errors import ConfigError, InputError

_PERPLEXITY = 30.0


def project(embeddings: Array, method: str = "pca") -> tuple[npt.NDArray[np.float64], list[str]]:
    """Return (N, 2) coordinates and the names of the two axes.

    `pca` keeps distances as well as any plane can, and the axes say how much of the variance
    they hold. `tsne` (Van der Maaten and Hinton 2008; seeded) keeps neighbours together and no
    distances.

    Raises:
        InputError: fewer than three rows.
        ConfigError: an unknown method.
    """
    if len(embeddings) < 3:
        raise InputError(f"a map needs at least three windows, got {len(embeddings)}")
    if method == "pca":
        return _pca(embeddings)
    if method == "tsne":
        from sklearn.manifold import TSNE

        # A point cannot have more neighbours than there are points.
        perplexity = min(_PERPLEXITY, (len(embeddings) - 1) / 3.0)
        model = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
        return model.fit_transform(embeddings).astype(np.float64), ["t-SNE 1", "t-SNE 2"]
    raise ConfigError(f"method must be pca or tsne, got {method!r}")


def _pca(embeddings: Array) -> tuple[npt.NDArray[np.float64], list[str]]:
    centred = embeddings.astype(np.float64)
    centred -= centred.mean(axis=0)
    # The smaller of the two Gram matrices has the same leading eigenvalues.
    wide = len(centred) < centred.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    lead = slice(-1, -3, -1)
    variance = np.maximum(values[lead], 0.0)
    points = vectors[:, lead] * np.sqrt(variance) if wide else centred @ vectors[:, lead]
    if points.shape[1] < 2:  # one-dimensional vectors have no second axis
        points = np.column_stack([points, np.zeros(len(points))])
        variance = np.append(variance, 0.0)
    # The sign of an eigenvector is arbitrary: the largest excursion points up.
    far = np.abs(points).argmax(axis=0)
    points *= np.where(points[far, [0, 1]] < 0.0, -1.0, 1.0)
    total = float(np.square(centred).sum()) or 1.0
    shares = [100.0 * float(v) / total for v in variance]
    return points, [f"principal component {i + 1} ({s:.0f} %)" for i, s in enumerate(shares)]
