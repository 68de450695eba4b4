"""How much each modality adds to the fused vector: exact Shapley values through the fusion head.

The game: f(S) is the fused vector with only the modalities of S present, P are all that are
there. The worth of S is how far it takes the fused vector from "nothing known" to the full one,

    v(S) = 1 - |f(S) - f(P)|^2 / |f({}) - f(P)|^2,        v({}) = 0, v(P) = 1.

A modality's share is its mean marginal worth over all orders of arrival (Shapley 1953, "A value
for n-person games"; as an attribution: arXiv 1705.07874). The shares sum to 1 exactly, equal
modalities get equal shares and one that the head ignores gets 0. Of a head that adds the
modalities up, the share is each one's shift projected on the total shift. A share is negative
where the modality pulls the vector away from where all together take it.

The players are the streams: where the cameras are given apart, `vision`, which is made of them,
is left out, and its share is the sum of theirs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from mmfuse_ros.analysis.arrays import Array, as_rows, unit
from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import CAMERAS, Modality

if TYPE_CHECKING:
    import torch

    from mmfuse_ros.analysis.arrays import Embedding

SHAPLEY, SQUARED_NORM = "shapley", "squared_norm"

_CAMERA_MEAN = "vision"
# 2^n subsets go through the head; the system has 5 modalities.
_MAX_MODALITIES = 12
_ROWS_PER_BATCH = 4096
# Reduced precision and another batch size move the vector by less; another input by more.
_SAME_COSINE = 0.99


class FusionHead(Protocol):
    """`RoboticFeedbackSystem.fuse`, or what stands in for it."""

    def __call__(
        self, vectors: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Fuse (B, D_m) vectors under (B,) masks of presence -> (B, D)."""
        ...


@dataclass(frozen=True)
class Shares:
    """Each modality's share in each row.

    Attributes:
        rows: (N,) by modality.
        method: SHAPLEY or SQUARED_NORM.
    """

    rows: Mapping[str, npt.NDArray[np.float64]]
    method: str

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the rows."""
        return {name: float(values.mean()) for name, values in self.rows.items()}


def contributions(
    vectors: Mapping[str, Embedding], fused: Embedding, fuse: FusionHead | None = None
) -> Shares:
    """Return each modality's share of each fused vector.

    `shapley` runs the fusion head: `fuse`, or the attribute of that name which the system gives
    to the embeddings it returns. Vectors alone (a plain dict) do not determine a contribution;
    then `squared_norm` is returned, with a warning: each modality's share of the squared length
    of the concatenated vectors, the Shapley value of the game v(S) = |concatenation of S|^2. It
    says how large the inputs of the fusion are and nothing of what the head makes of them.

    Raises:
        InputError: no modality, unequal numbers of rows, or `fused` is not what the head makes
            of `vectors`.
    """
    fuse = fuse or getattr(vectors, "fuse", None)
    rows = _check(vectors)
    result = as_rows(fused, "fused_embedding")
    count = len(next(iter(rows.values())))
    if len(result) != count:
        raise InputError(
            f"fused_embedding must have one row for each of the {count} rows of the modalities, "
            f"got {len(result)}"
        )
    if fuse is not None:
        values, full = _shapley(rows, fuse)
        _check_same(result, full)
        return Shares(dict(zip(rows, values.T, strict=True)), SHAPLEY)
    warnings.warn(
        "the fusion head is not known, so contributions are shares of squared length; pass "
        "fuse=system.fuse, or the embeddings as the system returned them",
        stacklevel=3,
    )
    return squared_norm_shares(rows)


def squared_norm_shares(vectors: Mapping[str, Embedding]) -> Shares:
    """Return each modality's share of the squared length of the concatenated vectors."""
    rows = _check(vectors)
    squares = {name: np.square(r, dtype=np.float64).sum(axis=1) for name, r in rows.items()}
    total = np.sum(list(squares.values()), axis=0)
    total = np.where(total > 0.0, total, 1.0)
    return Shares({name: s / total for name, s in squares.items()}, SQUARED_NORM)


def shapley_values(
    vectors: Mapping[str, Embedding], fuse: FusionHead
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the Shapley value of each modality on the fused vector of each row, (N,) by name.

    2^n evaluations a row for n modalities, in batches through the head. A row's values sum to 1;
    all are 0 where the fused vector is the same with and without the modalities.

    Args:
        vectors: (D_m,) or (N, D_m) by modality; what is left out is missing in every row.
        fuse: the fusion head; a system in training mode is set to eval mode meanwhile.

    Raises:
        InputError: no modality, more than 12, or unequal numbers of rows.
    """
    rows = _check(vectors)
    values, _ = _shapley(rows, fuse)
    return dict(zip(rows, values.T, strict=True))


def _check(vectors: Mapping[str, Embedding]) -> dict[str, Array]:
    rows = {str(name): as_rows(value, str(name)) for name, value in vectors.items()}
    order = {m.value: m.bit for m in Modality}
    rows = dict(sorted(rows.items(), key=lambda item: order.get(item[0], 0)))
    if any(camera.value in rows for camera in CAMERAS):
        rows.pop(_CAMERA_MEAN, None)
    if not 1 <= len(rows) <= _MAX_MODALITIES:
        raise InputError(f"modalities must be 1 to {_MAX_MODALITIES}, got {len(rows)}")
    counts = {name: len(value) for name, value in rows.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"all modalities must have the same number of rows, got {counts}")
    return rows


def _shapley(
    rows: Mapping[str, Array], fuse: FusionHead
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the values (N, n) and the full fused vectors (N, D)."""
    import torch

    players = len(rows)
    subsets = (np.arange(2**players)[:, None] >> np.arange(players)) & 1 == 1  # (2^n, n)
    weights = _weights(subsets)
    owner = getattr(fuse, "__self__", fuse)
    device = next((p.device for p in getattr(owner, "parameters", tuple)()), torch.device("cpu"))
    count = len(next(iter(rows.values())))
    step = max(1, _ROWS_PER_BATCH // len(subsets))
    values, full = [], []
    for start in range(0, count, step):
        part = {name: torch.from_numpy(r[start : start + step]) for name, r in rows.items()}
        size = len(next(iter(part.values())))
        batch = {name: t.to(device).repeat_interleave(len(subsets), 0) for name, t in part.items()}
        present = {
            name: torch.from_numpy(subsets[:, i].copy()).to(device).repeat(size)
            for i, name in enumerate(part)
        }
        with torch.no_grad(), _eval_mode(owner):
            output = fuse(batch, present=present)
        fused = output.cpu().double().numpy().reshape(size, len(subsets), -1)  # (b, 2^n, D)
        distance = np.square(fused - fused[:, -1:]).sum(axis=2)  # (b, 2^n)
        whole = distance[:, :1]
        worth = np.where(whole > 0.0, 1.0 - distance / np.where(whole > 0.0, whole, 1.0), 0.0)
        values.append(worth @ weights.T)
        full.append(fused[:, -1])
    return np.concatenate(values), np.concatenate(full)


@contextmanager
def _eval_mode(owner: Any) -> Iterator[None]:
    """Hold a module in eval mode: dropout would make each subset another function."""
    training = getattr(owner, "training", False)
    if training:
        owner.eval()
    try:
        yield
    finally:
        if training:
            owner.train()


def _weights(subsets: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return (n, 2^n): the Shapley value is the weighted sum of the worths of all subsets."""
    players = subsets.shape[1]
    total = math.factorial(players)
    order = np.array(
        [math.factorial(s) * math.factorial(players - s - 1) / total for s in range(players)]
    )
    size = subsets.sum(axis=1)
    joined = np.append(0.0, order)[size]  # the player is in S: it came to S without it
    absent = np.append(order, 0.0)[size]
    return np.where(subsets.T, joined, -absent)


def _check_same(given: Array, full: npt.NDArray[np.float64]) -> None:
    if given.shape[1] != full.shape[1]:
        raise InputError(
            f"fused_embedding must have the head's dimension {full.shape[1]}, got {given.shape[1]}"
        )
    cosine = (unit(given) * unit(full.astype(np.float32))).sum(axis=1)
    if (cosine < _SAME_COSINE).any():
        raise InputError(
            "fused_embedding must be what the fusion head makes of these modalities, got a "
            f"vector of cosine {cosine.min():.3f} to it; take both from one call, in eval mode"
        )
