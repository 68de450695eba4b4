"""Fit one calibration: every unit is scored by a model that has not seen it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly.calibration import MIN_UNITS, fold_units
from mmfuse_ros.anomaly.consistency import fit_consistency
from mmfuse_ros.anomaly.joint import Block, Calibration, combine, components
from mmfuse_ros.anomaly.recordings import Table, modality_of
from mmfuse_ros.anomaly.scores import SCORES, BlockModel
from mmfuse_ros.errors import CalibrationError

FloatArray = npt.NDArray[np.floating]

MAX_FOLDS = 12
MAX_VALUES = 4000
_MIN_SPREAD = 0.05  # of a log score; a score that hardly moves must not be blown up


def fit_block(
    x: FloatArray, unit: npt.NDArray[np.intp], share: int = 1
) -> tuple[Block, FloatArray]:
    """Fit one block and return it with the left-out value of each row (NaN where absent)."""
    present = ~np.isnan(x[:, 0])
    names = np.unique(unit[present])
    rows = [np.flatnonzero(present & (unit == name)) for name in names]
    logs = np.full((len(x), len(SCORES)), np.nan)
    for fold in fold_units(len(rows), MAX_FOLDS):
        held = set(fold)
        model = BlockModel.fit([x[r] for i, r in enumerate(rows) if i not in held], share)
        for i in fold:
            logs[rows[i]] = model.log_scores(x[rows[i]])
    centre = np.mean([np.median(logs[r], axis=0) for r in rows], axis=0)
    deviation = [np.abs(logs[r] - centre).mean(axis=0) for r in rows]
    spread = np.maximum(1.25 * np.mean(deviation, axis=0), _MIN_SPREAD)
    model = BlockModel.fit([x[r] for r in rows], share)
    if model.whitening.plain.shape[1] == x.shape[1]:
        spread[SCORES.index("residual")] = np.inf
    if x.shape[1] == 1:
        spread[SCORES.index("cosine_knn")] = np.inf
    return Block(model, centre, spread), combine(logs, centre, spread)


def fit_calibration(table: Table, consistency: bool = True, share: int = 1) -> Calibration:
    """Fit every block of a table, and how they depend on each other.

    Raises:
        CalibrationError: a modality is present in fewer than three units.
    """
    blocks: dict[str, Block] = {}
    left_out: dict[str, list[FloatArray]] = {}
    for key in sorted(table.blocks):
        x = table.blocks[key]
        units = len(np.unique(table.unit[~np.isnan(x[:, 0])]))
        if units < MIN_UNITS:
            raise CalibrationError(
                f"{key} must be present in at least {MIN_UNITS} independent "
                f"{table.unit_kind}s, got {units}; record more or leave it out"
            )
        blocks[key], values = fit_block(x, table.unit, share)
        left_out.setdefault(modality_of(key), []).append(values)
    modalities = tuple(sorted(left_out))
    values = np.stack([np.fmax.reduce(left_out[m]) for m in modalities], axis=1)
    together = np.full(len(values), np.nan)
    model = None
    if consistency and len(modalities) > 1:
        parts = components(blocks, table.blocks)
        known = ~np.isnan(np.concatenate(list(parts.values()), axis=1)).any(axis=1)
        fitted = fit_consistency({m: x[known] for m, x in parts.items()}, table.unit[known])
        if fitted is not None:
            model, together[known] = fitted
    keep = _thin_rows(table.unit, MAX_VALUES)
    return Calibration(
        blocks,
        modalities,
        values[keep].astype(np.float32),
        together[keep].astype(np.float32),
        table.unit[keep],
        table.row[keep],
        model,
    )


def _thin_rows(unit: npt.NDArray[np.intp], limit: int) -> npt.NDArray[np.intp]:
    """Return at most about `limit` rows, evenly from each unit."""
    if len(unit) <= limit:
        return np.arange(len(unit))
    names = np.unique(unit)
    share = max(1, limit // len(names))
    taken = []
    for name in names:
        rows = np.flatnonzero(unit == name)
        count = min(len(rows), share)
        taken.append(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)])
    return np.concatenate(taken)
