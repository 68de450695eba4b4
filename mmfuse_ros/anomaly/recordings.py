"""Normal recordings as one table: checked, with absence as NaN, divided into independent units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly.calibration import split_blocks
from mmfuse_ros.errors import InputError

FloatArray = npt.NDArray[np.floating]
Features = Mapping[str, npt.ArrayLike]

DEFAULT_BLOCKS = 20
BLOCK_S = 10.0


@dataclass(frozen=True)
class Table:
    """All rows of all recordings.

    Attributes:
        blocks: key -> (N, dim) float32; a row of NaN where the block is absent.
        unit: (N,) which independent unit a row belongs to, 0 .. units - 1.
        recording: (N,) which recording a row belongs to.
        row: (N,) its number among all windows of all recordings.
        unit_kind: "recording" or "block".
        phase: (N,) phase labels, "" where none were given.
    """

    blocks: Mapping[str, FloatArray]
    unit: npt.NDArray[np.intp]
    recording: npt.NDArray[np.intp]
    row: npt.NDArray[np.intp]
    unit_kind: str
    phase: npt.NDArray[np.str_]

    @property
    def units(self) -> int:
        return len(np.unique(self.unit))

    def where(self, rows: npt.NDArray[np.bool_]) -> Table:
        """Return the table of some of the rows, its units numbered anew."""
        _, unit = np.unique(self.unit[rows], return_inverse=True)
        return Table(
            {key: value[rows] for key, value in self.blocks.items()},
            unit,
            self.recording[rows],
            self.row[rows],
            self.unit_kind,
            self.phase[rows],
        )


def modality_of(key: str) -> str:
    """Return the modality of a feature block: what stands before the first colon."""
    return key.split(":", 1)[0]


def to_features(features: Features, name: str = "features") -> dict[str, FloatArray]:
    """Check one mapping of feature blocks and return it as float32 arrays of equal length.

    A row that holds NaN is absent as a whole; infinities are refused.

    Raises:
        InputError: a block is not (n, dim), lengths differ, or a value is infinite.
    """
    if not isinstance(features, Mapping):
        raise InputError(
            f"{name} must map modality to (n_windows, dim), got {type(features).__name__}"
        )
    arrays: dict[str, FloatArray] = {}
    length: int | None = None
    for key, value in features.items():
        array = np.asarray(value, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] == 0:
            raise InputError(f"{name}[{key!r}] must be (n_windows, dim), got {array.shape}")
        if length is not None and len(array) != length:
            raise InputError(
                f"{name}[{key!r}] must have {length} windows like the other modalities, "
                f"got {len(array)}; mark an absent window by a row of NaN"
            )
        length = len(array)
        total = array.sum()
        if not np.isfinite(total):
            if np.isinf(array).any():
                raise InputError(f"{name}[{key!r}] must be finite (NaN marks absence), got inf")
            absent = np.asarray(np.isnan(array).any(axis=1))
            array = np.where(absent[:, None], np.float32(np.nan), array)
        arrays[str(key)] = array
    return arrays


def tabulate(
    recordings: Sequence[Features],
    *,
    unit: str = "auto",
    block_windows: int | None = None,
    guard: int = 0,
    phases: Sequence[str | Sequence[str]] | None = None,
) -> Table:
    """Join recordings into a table and divide it into units.

    Args:
        recordings: one mapping of key -> (n_windows, dim) per recording, windows in time order.
        unit: "recording", "block" (pieces of `block_windows` within each recording), or "auto":
            recordings where there are two or more, else blocks.
        block_windows: windows per block; default a twentieth of the recording.
        guard: windows left out between neighbouring blocks, because they overlap.
        phases: one label per recording, or one per window of each recording.

    Raises:
        InputError: there is nothing to fit on, or shapes, keys or labels do not match.
    """
    if unit not in ("auto", "recording", "block"):
        raise InputError(f"unit must be 'auto', 'recording' or 'block', got {unit!r}")
    if isinstance(recordings, Mapping) or not len(recordings):
        raise InputError("recordings must be a list of one or more {modality: (n_windows, dim)}")
    parts = [to_features(r, f"recordings[{i}]") for i, r in enumerate(recordings)]
    lengths = [len(next(iter(part.values()))) if part else 0 for part in parts]
    if phases is not None and len(phases) != len(parts):
        raise InputError(
            f"phases must have one entry per recording ({len(parts)}), got {len(phases)}"
        )
    dims: dict[str, int] = {}
    for i, part in enumerate(parts):
        for key, value in part.items():
            if dims.setdefault(key, value.shape[1]) != value.shape[1]:
                raise InputError(
                    f"recordings[{i}][{key!r}] must have {dims[key]} columns like the "
                    f"recordings before, got {value.shape[1]}"
                )
    total = sum(lengths)
    if not dims or total == 0:
        raise InputError("recordings must hold at least one window, got none")
    blocks = {}
    for key, dim in dims.items():
        pieces = [
            part.get(key, np.full((length, dim), np.nan, dtype=np.float32))
            for part, length in zip(parts, lengths, strict=True)
        ]
        blocks[key] = np.concatenate(pieces)
    recording = np.repeat(np.arange(len(parts)), lengths)
    labels = [_labels(phases[i] if phases else "", n, i) for i, n in enumerate(lengths)]
    use_blocks = unit == "block" or (unit == "auto" and sum(n > 0 for n in lengths) == 1)
    table = Table(
        blocks,
        recording,
        recording,
        np.arange(total),
        "block" if use_blocks else "recording",
        np.concatenate(labels),
    )
    if use_blocks:
        table = _into_blocks(table, lengths, block_windows, guard)
    return table.where(np.ones(len(table.unit), dtype=bool))


def _into_blocks(table: Table, lengths: list[int], block: int | None, guard: int) -> Table:
    size = block or max(1, max(lengths) // DEFAULT_BLOCKS)
    unit = np.empty(len(table.unit), dtype=np.intp)
    keep = np.ones(len(unit), dtype=bool)
    begin = first = 0
    for length in lengths:
        index = split_blocks(length, size)
        unit[begin : begin + length] = index + first
        if guard:  # the head of every block but the first overlaps the block before it
            starts = np.flatnonzero(np.diff(index)) + 1
            for start in starts:
                keep[begin + start : begin + min(start + guard, length)] = False
        begin += length
        first += int(index[-1]) + 1 if length else 0
    joined = replace(table, unit=unit)
    return joined.where(keep)


def _labels(label: str | Sequence[str], length: int, index: int) -> npt.NDArray[np.str_]:
    if isinstance(label, str):
        return np.full(length, label)
    labels = np.asarray(label, dtype=str)
    if labels.shape != (length,):
        raise InputError(
            f"phases[{index}] must be one label or {length} of them, got shape {labels.shape}"
        )
    return labels
