"""Embeddings as they come (NumPy, torch on any device, lists), read into float32 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from mmfuse_ros.errors import InputError

if TYPE_CHECKING:
    import torch

    Embedding: TypeAlias = npt.ArrayLike | torch.Tensor

Array = npt.NDArray[np.float32]


def as_rows(value: Embedding, name: str = "embedding") -> Array:
    """Return embeddings as (N, D) float32; one vector (D,) becomes one row.

    Raises:
        InputError: not numbers, not of one or two axes, empty, or not finite.
    """
    # A tensor is known by its methods, so that reading arrays does not import torch.
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    try:
        rows = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers, got {type(value).__name__}: {error}") from None
    if rows.ndim not in (1, 2) or rows.size == 0:
        raise InputError(f"{name} must be of shape (D,) or (N, D), not empty, got {rows.shape}")
    if not np.isfinite(rows).all():
        bad = int(np.count_nonzero(~np.isfinite(rows)))
        raise InputError(f"{name} must be finite, got {bad} elements of NaN or infinity")
    return np.atleast_2d(rows)


def as_vector(value: Embedding, name: str = "embedding") -> Array:
    """Return one embedding, (D,) or (1, D), as (D,) float32.

    Raises:
        InputError: as of `as_rows`, or more than one row.
    """
    rows = as_rows(value, name)
    if len(rows) != 1:
        raise InputError(
            f"{name} must be one vector, (D,) or (1, D), got {rows.shape}; pass a row of it"
        )
    return rows[0]


def unit(rows: Array) -> npt.NDArray[np.float64]:
    """Return (N, D) rows of length 1 in float64; a row of zeros has no direction and stays."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0.0, norms, 1.0)
