"""Fit one calibration: every unit is scored by a model that has not seen it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly.calibration import MIN_UNITS, fold_units
from mmfuse_ros.anomaly.consistency import (
    MIN_SEPARATION,
    Consistency,
    fit_consistency,
    separation,
)
from mmfuse_ros.anomaly.joint import Block, Calibration, combine, components
from mmfuse_ros.anomaly.recordings import Table, modality_of
from mmfuse_ros.anomaly.scores import SCORES, BlockModel
from mmfuse_ros.errors import CalibrationError

FloatArray = npt.NDArray[np.floating]
Folds = list[Set[int]]

MAX_FOLDS = 12
MAX_VALUES = 4000
_MIN_SPREAD = 0.05  # of a log score; a score that hardly moves must not be blown up


def fit_block(
    x: FloatArray, unit: npt.NDArray[np.intp], folds: Folds, share: int = 1
) -> tuple[Block, FloatArray, list[BlockModel]]:
    """Fit one block.

    Returns the block, the left-out value of each row (NaN where absent), and the model of each
    fold, which has not seen the fold's units.
    """
    present = ~np.isnan(x[:, 0])
    rows = {name: np.flatnonzero(present & (unit == name)) for name in np.unique(unit[present])}
    logs = np.full((len(x), len(SCORES)), np.nan)
    models = []
    for fold in folds:
        seen = [x[r] for name, r in rows.items() if name not in fold]
        models.append(BlockModel.fit(seen, share))
        for name in fold & rows.keys():
            logs[rows[name]] = models[-1].log_scores(x[rows[name]])
    centre = np.mean([np.median(logs[r], axis=0) for r in rows.values()], axis=0)
    deviation = [np.abs(logs[r] - centre).mean(axis=0) for r in rows.values()]
    spread = np.maximum(1.25 * np.mean(deviation, axis=0), _MIN_SPREAD)
    model = BlockModel.fit([x[r] for r in rows.values()], share)
    if model.whitening.plain.shape[1] == x.shape[1]:
        spread[SCORES.index("residual")] = np.inf
    if x.shape[1] == 1:
        spread[SCORES.index("cosine_knn")] = np.inf
    return Block(model, centre, spread), combine(logs, centre, spread), models


def fit_calibration(table: Table, consistency: bool = True, share: int = 1) -> Calibration:
    """Fit every block of a table, and how they depend on each other.

    Raises:
        CalibrationError: a modality is present in fewer than three units.
    """
    blocks: dict[str, Block] = {}
    left_out: dict[str, list[FloatArray]] = {}
    fold_models: dict[str, list[BlockModel]] = {}
    for key in sorted(table.blocks):
        x = table.blocks[key]
        held = np.unique(table.unit[~np.isnan(x[:, 0])])
        if len(held) < MIN_UNITS:
            raise CalibrationError(
                f"{key} must be present in at least {MIN_UNITS} independent "
                f"{table.unit_kind}s, got {len(held)}; record more or leave it out"
            )
    folds = _folds(table)
    for key in sorted(table.blocks):
        blocks[key], values, fold_models[key] = fit_block(
            table.blocks[key], table.unit, folds, share
        )
        left_out.setdefault(modality_of(key), []).append(values)
    modalities = tuple(sorted(left_out))
    values = np.stack([np.fmax.reduce(left_out[m]) for m in modalities], axis=1)
    model, together = None, np.full(len(values), np.nan)
    if consistency and len(modalities) > 1:
        whole = {key: block.model for key, block in blocks.items()}
        by_fold = [
            {key: models[i] for key, models in fold_models.items()} for i in range(len(folds))
        ]
        model, together = _fit_together(table, folds, whole, by_fold)
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


def _fit_together(
    table: Table,
    folds: Folds,
    whole: Mapping[str, BlockModel],
    by_fold: Sequence[Mapping[str, BlockModel]],
) -> tuple[Consistency | None, FloatArray]:
    """Fit consistency and score each unit by a whitening and a ridge that have not seen it.

    It is kept only if it tells left-out recordings from the same recordings with one modality
    shifted by half their length: normal data, wrongly paired on purpose. No anomaly is involved.
    """
    together = np.full(len(table.unit), np.nan)
    parts = components(whole, table.blocks)
    known = ~np.isnan(np.concatenate(list(parts.values()), axis=1)).any(axis=1)
    unit = table.unit[known]
    model = fit_consistency({name: x[known] for name, x in parts.items()}, unit)
    if model is None:
        return None, together
    shifted: dict[str, list[FloatArray]] = {name: [] for name in parts}
    for fold, models in zip(folds, by_fold, strict=True):
        out = np.isin(unit, list(fold))
        if not out.any():
            continue
        mine = {name: x[known] for name, x in components(models, table.blocks).items()}
        judge = fit_consistency({name: x[~out] for name, x in mine.items()}, unit[~out], 0.0)
        if judge is None:
            return None, together
        held = {name: x[out] for name, x in mine.items()}
        together[np.flatnonzero(known)[out]] = judge.log_score(held)[0]
        for name, x in held.items():
            rolled = {**held, name: _roll(x, unit[out])}
            shifted[name].append(judge.log_score(rolled)[0])
    proper = together[known]
    skill = max(separation(proper, np.concatenate(rows)) for rows in shifted.values())
    if skill < MIN_SEPARATION:
        return None, np.full(len(table.unit), np.nan)
    return model, together


def _roll(x: FloatArray, unit: npt.NDArray[np.intp]) -> FloatArray:
    """Shift rows by half the length of their unit, round and round."""
    rolled = x.copy()
    for name in np.unique(unit):
        rows = np.flatnonzero(unit == name)
        rolled[rows] = x[np.roll(rows, len(rows) // 2)]
    return rolled


def _folds(table: Table) -> Folds:
    """Return folds of units such that no block loses all but one of its units at once."""
    names = np.unique(table.unit)
    fewest = min(len(np.unique(table.unit[~np.isnan(x[:, 0])])) for x in table.blocks.values())
    limit = MAX_FOLDS if fewest > 2 * MAX_FOLDS else len(names)
    return [{int(names[i]) for i in fold} for fold in fold_units(len(names), limit)]


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
