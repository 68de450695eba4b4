"""How strange a feature vector is: robust whitening, a bounded memory, four scores.

A `BlockModel` is fitted on one block of features (one array of one modality). It holds plain
arrays only, so that it can be written to a file and read back without code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

SCORES = ("knn", "cosine_knn", "mahalanobis", "residual")

MAX_COMPONENTS = 64
MAX_BANK = 512
MAX_DIRECTIONS = 65_536  # numbers, in all rows
MAX_ROWS = 512  # that a covariance of many columns is taken from
NEIGHBOURS = 3
SHRINKAGE = 0.1  # towards the mean variance; half of it or three times as much changes little
_CLIP = 8.0  # robust standard deviations; bounds what one odd training row does to the fit
_TINY = 1e-9


@dataclass(frozen=True)
class Whitening:
    """Standardise by robust location and scale, rotate to shrunk principal axes.

    Attributes:
        location: (dim,) mean of the units' medians.
        scale: (dim,) robust standard deviation, never zero.
        plain: (dim, q) principal axes of unit length.
        deviation: (q,) root of the shrunk variance along them.
        quieting: (q, q) whitens the same space by its noise instead: by how much windows that
            follow each other differ. Features that are mostly noise count for little there,
            whatever their number.
        residual_scale: variance that the kept axes leave, per left-out dimension, shrunk.
    """

    location: FloatArray
    scale: FloatArray
    plain: FloatArray
    deviation: FloatArray
    quieting: FloatArray
    residual_scale: float

    @classmethod
    def fit(cls, units: Sequence[FloatArray]) -> Whitening:
        """Fit on units of (n_k, dim); every unit has the same weight, whatever its length."""
        location, scale = _location_scale(units)

        def standard(x: FloatArray) -> FloatArray:
            return np.clip((x - location) / scale, -_CLIP, _CLIP).astype(np.float64)

        dim = location.shape[0]
        used = thin(units, MAX_ROWS if dim > MAX_ROWS // 2 else 16 * MAX_ROWS)
        weight = np.concatenate([np.full(len(u), 1.0 / (len(u) * len(used))) for u in used])
        z = standard(np.concatenate(used))
        mean = weight @ z
        values, vectors = _principal((z - mean) * np.sqrt(weight)[:, None])
        kept = max(1, min(MAX_COMPONENTS, len(values)))
        average = max(float(values.sum()) / dim, _TINY)
        shrunk = (1.0 - SHRINKAGE) * values + SHRINKAGE * average
        # An eigenvector's sign is arbitrary: fix it, so that a refit gives the same bits.
        plain = vectors[:, :kept]
        plain = plain * np.where(plain[np.abs(plain).argmax(axis=0), np.arange(kept)] < 0, -1, 1)
        noise = _noise_covariance([standard(unit) @ plain for unit in units if len(unit) > 1])
        if noise is None:  # no two windows in a row, or all the same
            noise = np.diag(values[:kept])
        rest = (float(values.sum()) - float(values[:kept].sum())) / max(dim - kept, 1)
        return cls(
            location=(location + scale * mean).astype(np.float32),
            scale=scale.astype(np.float32),
            plain=plain.astype(np.float32),
            deviation=np.sqrt(shrunk[:kept]).astype(np.float32),
            quieting=_inverse_root(noise).astype(np.float32),
            residual_scale=(1.0 - SHRINKAGE) * rest + SHRINKAGE * average,
        )

    def __call__(self, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return rows whitened by variance and by noise, (n, q) each, and the residual (n,)."""
        z = (x - self.location) / self.scale  # (n, dim)
        q = self.plain.shape[1]
        kept = z @ self.plain
        left_out = max(z.shape[1] - q, 1)
        rest = np.einsum("ij,ij->i", z, z) - np.einsum("ij,ij->i", kept, kept)
        residual = np.maximum(rest, 0.0) / (left_out * self.residual_scale)
        return kept / self.deviation, kept @ self.quieting, residual

    def leading(self, x: FloatArray, count: int) -> FloatArray:
        """Return the first whitened components: (n, dim) -> (n, count or fewer)."""
        z = (x - self.location) / self.scale
        return z @ self.plain[:, :count] / self.deviation[:count]


@dataclass(frozen=True)
class BlockModel:
    """One block's whitening and memory of normal rows.

    Attributes:
        whitening: see `Whitening`.
        bank: (N, q) normal rows, whitened by noise, at most `MAX_BANK`, evenly from all units.
        directions: (D, dim) some of these rows as they came, brought to unit length.
    """

    whitening: Whitening
    bank: FloatArray
    directions: FloatArray

    @classmethod
    def fit(cls, units: Sequence[FloatArray], share: int = 1) -> BlockModel:
        """Fit on units of (n_k, dim) normal rows; the memory is a `share`-th of the largest."""
        whitening = Whitening.fit(units)
        _, bank, _ = whitening(np.concatenate(thin(units, max(MAX_BANK // share, 64))))
        limit = max(MAX_DIRECTIONS // (share * whitening.location.shape[0]), 16)
        rows = np.concatenate(thin(units, min(limit, MAX_BANK)))
        directions = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
        return cls(whitening, np.ascontiguousarray(bank, dtype=np.float32), directions)

    def log_scores(self, x: FloatArray) -> FloatArray:
        """Return the natural logarithms of the four `SCORES`: (n, dim) -> (n, 4).

        - knn: mean squared distance to the 3 nearest rows of the memory (Ramaswamy et al. 2000).
        - cosine_knn: one minus the mean cosine to the 3 nearest in angle.
        - mahalanobis: squared length of the whitened row.
        - residual: squared part outside the kept axes (the Q statistic, Jackson and Mudholkar
          1979), zero information where every axis is kept.
        """
        white, quiet, residual = self.whitening(x)
        q = white.shape[1]
        raw = np.empty((len(x), len(SCORES)))
        k = min(NEIGHBOURS, len(self.bank))
        near = self._lengths - 2.0 * (quiet @ self.bank.T)  # (n, N), less the row's own length
        near.partition(k - 1, axis=1)
        raw[:, 0] = (np.einsum("ij,ij->i", quiet, quiet) + near[:, :k].mean(axis=1)) / q
        c = min(NEIGHBOURS, len(self.directions))
        cosine = -(x @ self.directions.T)  # (n, N), times the row's length
        cosine.partition(c - 1, axis=1)
        size = np.maximum(np.sqrt(np.einsum("ij,ij->i", x, x)), _TINY)
        raw[:, 1] = 1.0 + cosine[:, :c].mean(axis=1) / size
        raw[:, 2] = np.einsum("ij,ij->i", white, white) / q
        raw[:, 3] = residual
        return np.log(np.maximum(raw, 0.0) + 1e-4)

    @cached_property
    def _lengths(self) -> FloatArray:
        return np.einsum("ij,ij->i", self.bank, self.bank)  # (N,)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return everything that defines the model, as arrays by name."""
        w = self.whitening
        return {
            "location": w.location,
            "scale": w.scale,
            "plain": w.plain,
            "deviation": w.deviation,
            "quieting": w.quieting,
            "residual_scale": np.float64(w.residual_scale).reshape(1),
            "bank": self.bank,
            "directions": self.directions,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, FloatArray]) -> BlockModel:
        """Rebuild a model from `arrays()`."""
        whitening = Whitening(
            arrays["location"],
            arrays["scale"],
            arrays["plain"],
            arrays["deviation"],
            arrays["quieting"],
            float(arrays["residual_scale"][0]),
        )
        return cls(whitening, arrays["bank"], arrays["directions"])


def thin(units: Sequence[FloatArray], limit: int) -> list[FloatArray]:
    """Take at most `limit` rows in all, the same number from each unit, evenly spaced in it."""
    if sum(len(unit) for unit in units) <= limit:
        return list(units)
    share = max(1, limit // len(units))
    short = sum(min(len(unit), share) for unit in units)
    long_units = sum(len(unit) > share for unit in units)
    extra = max(0, limit - short) // max(long_units, 1)
    taken = []
    for unit in units:
        count = min(len(unit), share + (extra if len(unit) > share else 0))
        taken.append(unit[np.linspace(0, len(unit) - 1, count).round().astype(int)])
    if len(taken) > limit:  # more units than places: every so-many-th unit
        keep = np.linspace(0, len(taken) - 1, limit).round().astype(int)
        taken = [taken[i] for i in keep]
    return taken


def _location_scale(units: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    rows = np.concatenate(units).astype(np.float64)
    location = np.mean([np.median(unit, axis=0) for unit in units], axis=0)
    deviation = np.abs(rows - location)
    robust = 1.4826 * np.median(deviation, axis=0)
    plain = np.sqrt(np.square(deviation).mean(axis=0))
    # A feature that rests on one value for most of the time has no MAD: take its plain spread.
    scale = np.where(robust > 0.2 * plain, robust, plain)
    typical = float(np.median(scale[scale > 0])) if (scale > 0).any() else 1.0
    floor = np.maximum(1e-3 * typical, 1e-6 * np.abs(location))
    return location, np.maximum(scale, floor)


def _principal(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return variances, descending, and axes (dim, r) of weighted, centred rows (n, dim)."""
    count, dim = rows.shape
    if dim <= count:
        values, vectors = np.linalg.eigh(rows.T @ rows)
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    values, left = np.linalg.eigh(rows @ rows.T)  # fewer rows than columns: the dual problem
    values, left = values[::-1], left[:, ::-1]
    rank = max(1, int((values > 1e-9 * max(values[0], _TINY)).sum()))
    values = np.maximum(values[:rank], _TINY)
    return values, rows.T @ left[:, :rank] / np.sqrt(values)


def _noise_covariance(units: Sequence[FloatArray]) -> FloatArray | None:
    """Return half the covariance of differences of successive rows, units weighted equally."""
    if not units:
        return None
    steps = [np.diff(unit, axis=0) for unit in units]
    total = sum(step.T @ step / (2.0 * len(step) * len(steps)) for step in steps)
    return total if np.trace(total) > 0 else None


def _inverse_root(covariance: FloatArray) -> FloatArray:
    """Return axes (q, q) that whiten a covariance, shrunk as the principal axes are."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    shrunk = (1.0 - SHRINKAGE) * values + SHRINKAGE * max(float(values.mean()), _TINY)
    return vectors / np.sqrt(shrunk)
