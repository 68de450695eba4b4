"""One calibration: what each modality, and their fit to each other, says of a window.

Scores become p-values modality by modality, and one p-value for all that are live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly.calibration import TailModel, surprise
from mmfuse_ros.anomaly.consistency import COMPONENTS, Consistency
from mmfuse_ros.anomaly.recordings import modality_of
from mmfuse_ros.anomaly.scores import BlockModel
from mmfuse_ros.errors import CalibrationError

FloatArray = npt.NDArray[np.floating]

TOGETHER = "together"  # the column of consistency beside those of the modalities


@dataclass(frozen=True)
class Block:
    """A block's model and the location and spread of each of its left-out log scores.

    Attributes:
        model: the whitening and the memory of all units.
        centre, spread: (4,) of the left-out log scores, every unit with the same weight; an
            infinite spread switches a score off.
    """

    model: BlockModel
    centre: FloatArray
    spread: FloatArray

    def z(self, x: FloatArray) -> FloatArray:
        """Return the mean of the normalised log scores: (n, dim) -> (n,)."""
        return combine(self.model.log_scores(x), self.centre, self.spread)


def combine(logs: FloatArray, centre: FloatArray, spread: FloatArray) -> FloatArray:
    """Return the mean of the normalised scores that are in use: (n, 4) -> (n,)."""
    return (logs - centre) @ (1.0 / (spread * np.isfinite(spread).sum()))


@dataclass
class Calibration:
    """Everything fitted on one set of normal rows.

    Attributes:
        blocks: by feature key.
        modalities: names, sorted.
        values: (N, M) left-out values by modality, NaN where absent.
        consistency_values: (N,) left-out log scores of consistency, NaN where unknown.
        unit: (N,) the unit of each row.
        row: (N,) the row's number among all windows it was fitted on.
        consistency: None where the modalities do not predict each other.
    """

    blocks: Mapping[str, Block]
    modalities: tuple[str, ...]
    values: FloatArray
    consistency_values: FloatArray
    unit: npt.NDArray[np.intp]
    row: npt.NDArray[np.intp]
    consistency: Consistency | None = None
    tails: dict[str, TailModel] = field(init=False)
    consistency_tail: TailModel | None = field(init=False, default=None)
    _joint: dict[tuple[str, ...], TailModel | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.tails = {}
        columns = []
        for column, name in enumerate(self.modalities):
            present = ~np.isnan(self.values[:, column])
            self.tails[name] = TailModel(self.values[present, column], self.unit[present])
            columns.append(self.tails[name].p(self.values[:, column]))
        if self.consistency is not None:
            known = ~np.isnan(self.consistency_values)
            self.consistency_tail = TailModel(self.consistency_values[known], self.unit[known])
            columns.append(self.consistency_tail.p(self.consistency_values))
        self._left_out = np.stack(columns, axis=1)  # (N, columns) of p
        self._of = {
            name: [k for k in self.blocks if modality_of(k) == name] for name in self.modalities
        }

    def joint(self, live: tuple[str, ...]) -> TailModel | None:
        """Return the distribution of the largest surprise among `live`, or None if unknown.

        `live` may hold `TOGETHER` for consistency. It is unknown where fewer than half of the
        units (or fewer than three) hold all of `live`.
        """
        if live not in self._joint:
            names = (*self.modalities, TOGETHER)
            part = self._left_out[:, [names.index(name) for name in live]]
            complete = ~np.isnan(part).any(axis=1)
            units = len(np.unique(self.unit[complete]))
            enough = units >= max(3, len(np.unique(self.unit)) // 2)
            self._joint[live] = (
                TailModel(surprise(part[complete].min(axis=1)), self.unit[complete])
                if enough
                else None
            )
        return self._joint[live]

    def left_out_p(self) -> FloatArray:
        """Return the joint p-value of each left-out row: (N,)."""
        names = (*self.modalities, TOGETHER)[: self._left_out.shape[1]]
        return self._combine(self._left_out, names)

    def score(
        self, arrays: Mapping[str, FloatArray], disabled: frozenset[str] = frozenset()
    ) -> tuple[FloatArray, dict[str, FloatArray], FloatArray, list[str]]:
        """Return joint p (n,), p by modality, p of consistency (n,) and the top names."""
        count = len(next(iter(arrays.values()))) if arrays else 0
        given = [name for name in self.modalities if any(k in arrays for k in self._of[name])]
        modality_p = {}
        columns: list[Any] = []  # (2, n) each: p, and p of the tail alone
        names = []
        for name in given:
            keys = [key for key in self._of[name] if key in arrays]
            values = np.stack([_present(self.blocks[key].z, arrays[key]) for key in keys])
            both = self.tails[name].both(np.fmax.reduce(values))
            modality_p[name] = both[0]
            if name not in disabled:
                columns.append(both)
                names.append(name)
        together, share = self._score_consistency(arrays, count)
        if self.consistency is not None and not disabled & set(self.consistency.names):
            columns.append(together)
            names.append(TOGETHER)
        stacked = np.stack(columns, axis=2) if columns else np.full((2, count, 0), np.nan)
        p = self._combine(stacked[0], tuple(names))
        return p, modality_p, together[0], self._blame(stacked[1], names, p, share)

    def _combine(self, stacked: FloatArray, names: tuple[str, ...]) -> FloatArray:
        """Correct the smallest p for the number of live columns: (n, m) -> (n,)."""
        p = np.full(len(stacked), np.nan)
        live = ~np.isnan(stacked)
        if live.all():  # sorting for patterns costs more than all the rest
            patterns, index = np.ones((1, live.shape[1]), dtype=bool), np.zeros(len(p), np.intp)
        else:
            patterns, index = np.unique(live, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            m = int(pattern.sum())
            if m == 0:
                continue
            rows = index.reshape(-1) == number
            single = stacked[rows][:, pattern].min(axis=1)
            joint = self.joint(tuple(n for n, on in zip(names, pattern, strict=True) if on))
            bound = np.minimum(m * single, 1.0)  # Bonferroni
            if m > 1 and joint is not None:
                bound = np.clip(joint.p(surprise(single)), single, bound)
            p[rows] = bound
        return p

    def _score_consistency(
        self, arrays: Mapping[str, FloatArray], count: int
    ) -> tuple[FloatArray, FloatArray | None]:
        together = np.full((2, count), np.nan)
        if self.consistency is None:
            return together, None
        parts = components({k: b.model for k, b in self.blocks.items()}, arrays)
        share = np.zeros((count, len(self.consistency.names)))
        if set(self.consistency.names) <= set(parts) and self.consistency_tail is not None:
            known = ~np.isnan(np.concatenate(list(parts.values()), axis=1)).any(axis=1)
            logs, share[known] = self.consistency.log_score(
                {name: parts[name][known] for name in self.consistency.names}
            )
            together[:, known] = self.consistency_tail.both(logs)
        return together, share

    def _blame(
        self, tails: FloatArray, names: list[str], p: FloatArray, share: FloatArray | None
    ) -> list[str]:
        """Return the name of the smallest tail in each row of (n, m), "" where p is NaN.

        By the tails alone: a p that counts stops at a step wherever a left-out recording lies,
        so that one that is far off would hide a stream behind others that are less odd.
        """
        top = [""] * len(p)
        filled = np.where(np.isnan(tails), np.inf, tails)
        own = filled[:, : len(names) - (TOGETHER in names)]
        judged = self.consistency is not None and share is not None and TOGETHER in names
        for row in np.flatnonzero(~np.isnan(p) & (own.shape[1] > 0)):
            best = int(own[row].argmin())
            top[row] = names[best]
            # Only where no stream is as strange by itself does the misfit between them speak.
            if judged and filled[row, -1] < 0.1 * own[row, best]:
                assert self.consistency is not None
                assert share is not None
                top[row] = self.consistency.names[int(share[row].argmax())]
        return top

    def check(self, dims: Mapping[str, int]) -> None:
        """Refuse arrays that do not belong together or that nothing can be scored with.

        Raises:
            CalibrationError: their shapes disagree, or a normal row would have no finite score.
        """
        self._check_rows()
        probes = {}
        for key, block in self.blocks.items():
            w, q = block.model.whitening, block.model.bank.shape[1]
            dim = dims[key]
            shapes = [
                w.location.shape,
                w.scale.shape,
                w.plain.shape,
                w.deviation.shape,
                w.quieting.shape,
                block.model.directions.shape[1:],
                block.centre.shape,
                block.spread.shape,
            ]
            if shapes != [(dim,), (dim,), (dim, q), (q,), (q, q), (dim,), (4,), (4,)]:
                raise CalibrationError(f"the calibration is damaged: shapes of {key} disagree")
            named = {**block.model.arrays(), "centre": block.centre}
            for name, array in named.items():
                if not np.isfinite(array).all():
                    raise CalibrationError(
                        f"the calibration is damaged: {name} of {key} is not finite"
                    )
            positive = (w.scale, w.deviation, np.float64(w.residual_scale), block.spread)
            # The most ordinary row there is, and one that is as far off as a fault may be.
            probes[key] = np.stack((w.location, w.location + 1e3 * w.scale)).astype(np.float32)
            scored = np.isfinite(block.z(probes[key])).all()
            unit = max(np.abs(a).max(initial=0.0) for a in (w.plain, block.model.directions))
            if not scored or unit > 1.01 or not all((values > 0).all() for values in positive):
                raise CalibrationError(f"the calibration is damaged: {key} has no finite score")
        if self.consistency is not None:
            parts = components({k: b.model for k, b in self.blocks.items()}, probes)
            self.consistency.check({name: part.shape[1] for name, part in parts.items()})
            if not np.isfinite(self.consistency.log_score(parts)[0]).all():
                raise CalibrationError(
                    "the calibration is damaged: consistency has no finite score"
                )

    def _check_rows(self) -> None:
        """Refuse left-out values that the tails cannot be taken from."""
        count = len(self.unit)
        shapes = [self.values.shape, self.consistency_values.shape, self.row.shape]
        if shapes != [(count, len(self.modalities)), (count,), (count,)] or self.modalities != (
            tuple(sorted({modality_of(key) for key in self.blocks}))
        ):
            raise CalibrationError("the calibration is damaged: its left-out rows disagree")
        known = ~np.isnan(self._left_out[:, : len(self.modalities)])
        if (
            np.isinf(self.values).any()
            or np.isinf(self.consistency_values).any()
            or (known != ~np.isnan(self.values)).any()
        ):
            raise CalibrationError("the calibration is damaged: a left-out value is not finite")

    def pack(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Return the calibration as a JSON header and arrays."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "values": self.values,
            "consistency_values": self.consistency_values,
            "unit": self.unit.astype(np.int32),
            "row": self.row.astype(np.int32),
        }
        for number, block in enumerate(self.blocks.values()):
            for name, value in block.model.arrays().items():
                arrays[f"{number}/{name}"] = value
            arrays[f"{number}/centre"] = block.centre
            arrays[f"{number}/spread"] = block.spread
        if self.consistency is not None:
            for name, value in self.consistency.arrays().items():
                arrays[f"consistency/{name}"] = value
        header = {
            "blocks": list(self.blocks),
            "modalities": list(self.modalities),
            "consistency": list(self.consistency.names) if self.consistency else None,
        }
        return header, arrays

    @classmethod
    def unpack(
        cls, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> Calibration:
        """Return the calibration of `pack`."""
        blocks = {}
        for number, key in enumerate(header["blocks"]):
            own = {
                name.split("/", 1)[1]: value
                for name, value in arrays.items()
                if name.startswith(f"{number}/")
            }
            blocks[key] = Block(BlockModel.from_arrays(own), own["centre"], own["spread"])
        consistency = None
        if header["consistency"]:
            own = {
                name.split("/", 1)[1]: value
                for name, value in arrays.items()
                if name.startswith("consistency/")
            }
            consistency = Consistency(names=tuple(header["consistency"]), **own)
        return cls(
            blocks,
            tuple(header["modalities"]),
            arrays["values"],
            arrays["consistency_values"],
            arrays["unit"].astype(np.intp),
            arrays["row"].astype(np.intp),
            consistency,
        )


def components(
    models: Mapping[str, BlockModel], arrays: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """Return the leading whitened components of each modality, (n, q); NaN rows stay NaN.

    A modality of several blocks gives the components of all of them; one whose blocks are not
    all there is left out.
    """
    parts: dict[str, list[FloatArray]] = {}
    missing = set()
    for key, model in models.items():
        if key not in arrays:
            missing.add(modality_of(key))
            continue
        leading = model.whitening.leading(arrays[key], COMPONENTS)
        parts.setdefault(modality_of(key), []).append(leading)
    return {
        name: np.concatenate(pieces, axis=1)
        for name, pieces in parts.items()
        if name not in missing
    }


def _present(score: Callable[[FloatArray], FloatArray], x: FloatArray) -> FloatArray:
    """Score the rows that are there; the others give NaN."""
    there = ~np.isnan(x[:, 0])
    if there.all():
        return score(x)
    out = np.full(len(x), np.nan)
    if there.any():
        out[there] = score(x[there])
    return out
