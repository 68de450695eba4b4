"""Runs of rows that are searched with one product: mapped from disk, or growing in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.analysis.arrays import Array
from mmfuse_ros.analysis.store import Columns, Entry

_FIRST_CAPACITY = 64


class Block:
    """Rows with what is deleted of them.

    Attributes:
        entry: the segment that holds the rows; None while they are on no disk.
        alive: (n,) bool, False where deleted.
    """

    def __init__(self, columns: Columns, entry: Entry | None = None) -> None:
        self.entry = entry
        self.vectors, self.ids = columns.vectors, columns.ids
        self.labels, self.stamps_ns = columns.labels, columns.stamps_ns
        self.metadata = columns.metadata
        self.alive = np.ones(len(self.ids), dtype=bool)
        if entry is not None:
            self.alive[list(entry.deleted)] = False
        self._squares: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._copy: Any = None
        self._copied = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def live(self) -> int:
        return int(np.count_nonzero(self.alive))

    @property
    def capacity(self) -> int:
        """Rows that there is room for."""
        return len(self)

    @property
    def squares(self) -> npt.NDArray[np.float32]:
        """Squared length of each row, computed once."""
        new = self.vectors[len(self._squares) :]
        if len(new):
            self._squares = np.append(self._squares, np.einsum("ij,ij->i", new, new))
        return self._squares

    def product(self, queries: Array, device: str) -> Array:
        """Return the inner products of (Q, D) queries with the rows, (Q, n)."""
        if device == "cpu":
            return (self.vectors @ queries.T).T
        import torch

        return (torch.from_numpy(queries).to(device) @ self._on(device).T).cpu().numpy()

    def has_label(self, label: str) -> npt.NDArray[np.bool_]:
        """Return (n,) bool, True where the row has this label."""
        if self.entry is None:
            return np.array([item == label for item in self.labels], dtype=bool)
        import pyarrow.compute

        return pyarrow.compute.equal(self.labels, label).to_numpy(zero_copy_only=False)

    def value(self, column: str, row: int) -> Any:
        """Return one value of `labels`, `stamps_ns` or `metadata`."""
        item = getattr(self, column)[row]
        return item.as_py() if hasattr(item, "as_py") else item

    def _on(self, device: str) -> Any:
        """Return the rows on a torch device; only what is new is sent."""
        import torch

        if self._copy is None or len(self._copy) < len(self):
            room = torch.empty(self.capacity, self.vectors.shape[1], device=device)
            if self._copied:
                room[: self._copied] = self._copy[: self._copied]
            self._copy = room
        if self._copied < len(self):
            # torch warns of a mapped segment, which is read-only: send a copy of it.
            new = np.array(self.vectors[self._copied :])
            self._copy[self._copied : len(self)] = torch.from_numpy(new).to(device)
            self._copied = len(self)
        return self._copy[: len(self)]


class Tail(Block):
    """The rows added since the last save; room for them doubles as they come."""

    def __init__(self, dimension: int) -> None:
        self._lists: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        super().__init__(
            Columns(np.empty((0, dimension), np.float32), np.empty(0, np.int64), *self._lists)
        )
        self._room: list[npt.NDArray[Any]] = [self.vectors, self.ids, self.alive]

    @property
    def capacity(self) -> int:
        return len(self._room[0])

    def append(
        self,
        rows: Array,
        ids: npt.NDArray[np.int64],
        labels: list[str],
        stamps_ns: list[int | None],
        metadata: list[str | None],
    ) -> None:
        """Add rows, all columns of one length."""
        start, stop = len(self), len(self) + len(rows)
        if stop > self.capacity:
            capacity = max(stop, 2 * self.capacity, _FIRST_CAPACITY)
            for i, old in enumerate(self._room):
                self._room[i] = np.empty((capacity, *old.shape[1:]), old.dtype)
                self._room[i][:start] = old[:start]
        for room, new in zip(self._room, (rows, ids, True), strict=True):
            room[start:stop] = new
        self.vectors, self.ids, self.alive = (room[:stop] for room in self._room)
        self._lists[0].extend(labels)
        self._lists[1].extend(stamps_ns)
        self._lists[2].extend(metadata)


def join(blocks: Sequence[Block]) -> Columns:
    """Return the rows of blocks that are not deleted, in order; one whole block is not copied."""
    if len(blocks) == 1 and blocks[0].live == len(blocks[0]):
        whole = blocks[0]
        return Columns(whole.vectors, whole.ids, whole.labels, whole.stamps_ns, whole.metadata)

    def values(column: str) -> list[Any]:
        kept: list[Any] = []
        for block in blocks:
            items = getattr(block, column)
            plain = items.to_pylist() if hasattr(items, "to_pylist") else items
            kept.extend(item for item, alive in zip(plain, block.alive, strict=True) if alive)
        return kept

    return Columns(
        np.concatenate([block.vectors[block.alive] for block in blocks]),
        np.concatenate([block.ids[block.alive] for block in blocks]),
        values("labels"),
        values("stamps_ns"),
        values("metadata"),
    )
