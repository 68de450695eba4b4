"""Find the most similar of many embeddings: exact search, kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse_ros.analysis import store
from mmfuse_ros.analysis.arrays import Array, as_rows, as_vector
from mmfuse_ros.analysis.blocks import Block, Tail, join
from mmfuse_ros.errors import ConfigError, InputError, StoreError

if TYPE_CHECKING:
    from mmfuse_ros.analysis.arrays import Embedding

METRICS = ("cosine", "l2")

# Of the rows that are best by the float32 product, this many are scored again in float64.
_SPARE = 64
# A product of many queries runs in parts: scores take 4 bytes a query and row.
_SCORES_AT_ONCE = 64 << 20
# A segment with more of its rows deleted than this is written anew.
_MAX_DELETED = 0.25


@dataclass(frozen=True)
class Match:
    """One row found.

    Attributes:
        id: given by `add_to_database`, never given again.
        label: as added.
        score: cosine similarity (higher is nearer), or distance for `l2` (lower is nearer).
        stamp_ns: as added, None where there was none.
        metadata: as added.
    """

    id: int
    label: str
    score: float
    stamp_ns: int | None
    metadata: dict[str, Any]


class EmbeddingRetrieval:
    """Labelled embeddings, searched exactly: one product with all vectors, no index to build.

    Scores come from a float32 product; the best rows are scored again in float64, so what is
    returned is ordered exactly unless more than 64 further rows tie within float32 rounding.
    Not to be changed and searched from two threads at once.

    Args:
        device: `cpu` multiplies with NumPy, in place; a torch device such as `cuda` keeps a
            copy of the vectors there and multiplies there.

    Raises:
        ConfigError: the device is not there.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = _check_device(device)
        self._stored: list[Block] = []
        self._tail = Tail(0)
        self._manifest = store.Manifest()
        self._folder: Path | None = None
        self._next_id = 0

    def __len__(self) -> int:
        return sum(block.live for block in self._blocks)

    @property
    def dimension(self) -> int:
        """Length of the vectors; 0 while there are none."""
        return self._tail.vectors.shape[1]

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in (*self._stored, self._tail) if len(block)]

    def add_to_database(
        self,
        embedding: Embedding,
        label: str,
        metadata: Mapping[str, Any] | None = None,
        stamp_ns: int | None = None,
    ) -> int:
        """Add one embedding, (D,) or (1, D); return its id.

        Raises:
            InputError: as of `add_batch`.
        """
        row = as_vector(embedding)[None]
        return self.add_batch(row, [label], [metadata], [stamp_ns])[0]

    def add_batch(
        self,
        embeddings: Embedding,
        labels: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        stamps_ns: Sequence[int | None] | None = None,
    ) -> range:
        """Add (N, D) embeddings; return their ids.

        Args:
            labels: one for each row.
            metadata: for each row, what JSON can hold, or None.
            stamps_ns: for each row, integer nanoseconds or None.

        Raises:
            InputError: unequal lengths, another dimension, a value that is not finite, a label
                that is not a string, metadata that JSON cannot hold.
        """
        rows = as_rows(embeddings, "embeddings")
        count = len(rows)
        if len(self) and rows.shape[1] != self.dimension:
            raise InputError(
                f"embeddings must have the database's dimension {self.dimension}, "
                f"got {rows.shape[1]}"
            )
        metadata = [None] * count if metadata is None else metadata
        stamps_ns = [None] * count if stamps_ns is None else stamps_ns
        for name, given in (("labels", labels), ("metadata", metadata), ("stamps_ns", stamps_ns)):
            if isinstance(given, str) or len(given) != count:
                raise InputError(f"{name} must hold one value for each of {count} rows")
        for label in labels:
            if not isinstance(label, str):
                raise InputError(f"a label must be a string, got {label!r}")
        texts = [_to_json(item) for item in metadata]
        stamps = [_to_stamp(stamp) for stamp in stamps_ns]
        if not len(self) and rows.shape[1] != self.dimension:
            self._stored, self._tail = [], Tail(rows.shape[1])
        ids = range(self._next_id, self._next_id + count)
        self._tail.append(rows, np.arange(ids.start, ids.stop), list(labels), stamps, texts)
        self._next_id = ids.stop
        return ids

    def retrieve_similar(
        self, query_embedding: Embedding, top_k: int = 5, metric: str = "cosine"
    ) -> list[tuple[str, float]]:
        """Return (label, similarity) of the `top_k` nearest, the nearest first.

        For `metric="l2"` the number is the distance. Fewer come back where there are fewer.

        Raises:
            InputError, ConfigError, StoreError: as of `search`.
        """
        query = as_vector(query_embedding, "query")[None]
        return [(match.label, match.score) for match in self.search(query, top_k, metric)[0]]

    def search(
        self, queries: Embedding, top_k: int = 5, metric: str = "cosine"
    ) -> list[list[Match]]:
        """Return for each query, (D,) or (Q, D), its `top_k` nearest, the nearest first.

        Raises:
            InputError: queries of another dimension, or not finite.
            ConfigError: an unknown metric, or `top_k` below 1.
            StoreError: a row that was loaded holds damaged metadata.
        """
        if metric not in METRICS:
            raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}")
        rows = as_rows(queries, "query")
        if not len(self):
            return [[] for _ in rows]
        if rows.shape[1] != self.dimension:
            raise InputError(
                f"query must have the database's dimension {self.dimension}, got {rows.shape[1]}"
            )
        total = sum(len(block) for block in self._blocks)
        step = max(1, _SCORES_AT_ONCE // total)
        found: list[list[Match]] = []
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            for query, scores in zip(part, self._scores(part, metric), strict=True):
                found.append(self._best(query, scores, top_k, metric))
        return found

    def delete(self, ids: Iterable[int] = (), *, label: str | None = None) -> int:
        """Delete rows by id, or all of one label; return how many there were.

        The change reaches the disk with the next `save`.
        """
        wanted = np.fromiter(ids, dtype=np.int64)
        before = len(self)
        for block in self._blocks:
            dead = np.isin(block.ids, wanted)
            if label is not None:
                dead |= block.has_label(label)
            block.alive[dead] = False
        return before - len(self)

    def clear_database(self) -> None:
        """Delete every row."""
        for block in self._blocks:
            block.alive[:] = False

    def save(self, path: Path | str) -> None:
        """Commit the rows to the folder `path`: at once, and whole or not at all.

        A folder that this object loaded or saved before gets only what changed. Small segments
        are merged as they gather, so that N saves leave about log N segments.

        Raises:
            StoreError: the folder holds another store, or another process changed it since.
            ConfigError: pyarrow is not installed.
        """
        folder = Path(path).resolve()
        with store.locked(folder):
            known = self._manifest if folder == self._folder else store.Manifest()
            if (folder / store.MANIFEST).exists() or known.generation:
                now = store.read_manifest(folder).generation
                if now != known.generation:
                    raise StoreError(
                        f"{folder} must be as this object last saw it (generation "
                        f"{known.generation}), it is at {now}; load it, add to that, and save"
                    )
            entries = self._write(folder)
            manifest = store.Manifest(
                known.generation + 1, self.dimension, self._next_id, tuple(entries)
            )
            store.commit(folder, manifest)
            self._adopt(folder, *store.read(folder))

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu") -> EmbeddingRetrieval:
        """Open the newest state of a folder that `save` made; any number may do so at once.

        The vectors are mapped, not read. What others save later is seen by loading again.

        Raises:
            StoreError: no store, one of a newer format, or a damaged one.
            ConfigError: pyarrow is not installed, or the device is not there.
        """
        self = cls(device)
        folder = Path(path).resolve()
        self._adopt(folder, *store.read(folder))
        return self

    def _scores(self, queries: Array, metric: str) -> Array:
        """Return (Q, n), higher is nearer, over all blocks; -inf where deleted."""
        parts = []
        for block in self._blocks:
            product = block.product(queries, self.device)
            if metric == "cosine":
                # The query's length is the same for all rows; a row of zeros scores 0.
                product /= np.sqrt(np.where(block.squares > 0.0, block.squares, 1.0))
            else:
                # -|x - q|^2 but for |q|^2, which is the same for all rows.
                product *= 2.0
                product -= block.squares
            if block.live < len(block):
                product[:, ~block.alive] = -np.inf
            parts.append(product)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _best(self, query: Array, scores: Array, top_k: int, metric: str) -> list[Match]:
        """Return the best rows by their score in float64, of those best by `scores`."""
        spare = min(len(scores), top_k + _SPARE)
        rows = np.argpartition(scores, len(scores) - spare)[len(scores) - spare :]
        rows = np.sort(rows[np.isfinite(scores[rows])])
        starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        places = np.searchsorted(starts, rows, side="right") - 1
        blocks = self._blocks
        found = [(blocks[p], int(r - starts[p])) for p, r in zip(places, rows, strict=True)]
        vectors = np.array([block.vectors[row] for block, row in found], dtype=np.float64)
        if metric == "cosine":
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query.astype(np.float64))
            exact = (vectors @ query) / np.where(lengths > 0.0, lengths, 1.0)
            order = np.argsort(-exact, kind="stable")
        else:
            exact = np.linalg.norm(vectors - query, axis=1)
            order = np.argsort(exact, kind="stable")
        return [_match(found[i][0], found[i][1], float(exact[i])) for i in order[:top_k]]

    def _write(self, folder: Path) -> list[store.Entry]:
        """Write what `folder` lacks; return the entries of its new manifest."""
        groups = [[block] for block in self._blocks if block.live]
        # As a binary counter carries: a run is merged with the one before it that is no longer.
        while len(groups) > 1 and _live(groups[-2]) <= _live(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
        entries = []
        for group in groups:
            block, entry = group[0], group[0].entry
            dead = np.flatnonzero(~block.alive)
            if (
                entry is not None
                and folder == self._folder
                and len(group) == 1
                and len(dead) <= _MAX_DELETED * len(block)
            ):
                entries.append(replace(entry, deleted=tuple(dead.tolist())))
            else:
                entries.append(store.write_segment(folder, join(group)))
        return entries

    def _adopt(
        self, folder: Path, manifest: store.Manifest, segments: list[store.Columns]
    ) -> None:
        """Make the committed state of `folder` this object's own."""
        known = {b.entry.file: b for b in self._stored if b.entry and folder == self._folder}
        blocks = []
        for entry, columns in zip(manifest.segments, segments, strict=True):
            block = known.get(entry.file) or Block(columns)
            block.entry = entry
            block.alive[:] = True
            block.alive[list(entry.deleted)] = False
            blocks.append(block)
        self._stored, self._tail = blocks, Tail(manifest.dimension)
        self._manifest, self._folder, self._next_id = manifest, folder, manifest.next_id


def _live(blocks: list[Block]) -> int:
    return sum(block.live for block in blocks)


def _match(block: Block, row: int, score: float) -> Match:
    text = block.value("metadata", row)
    try:
        metadata = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        # Seen only here: parsing every row's would make a load as slow as reading all of it.
        raise StoreError(
            f"metadata of row {int(block.ids[row])} must be JSON: {error}; the store is damaged, "
            "restore it or delete the row"
        ) from error
    return Match(
        id=int(block.ids[row]),
        label=block.value("labels", row),
        score=score,
        stamp_ns=block.value("stamps_ns", row),
        metadata=metadata,
    )


def _check_device(device: str) -> str:
    if device == "cpu":
        return device
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device must be one that torch has here, got {device!r}: {error}; use 'cpu'"
        ) from None
    return device


def _to_json(metadata: Mapping[str, Any] | None) -> str | None:
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InputError(f"metadata must be a mapping or None, got {metadata!r}")
    try:
        return json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata must be what JSON can hold: {error}") from None


def _to_stamp(stamp_ns: int | None) -> int | None:
    if stamp_ns is None:
        return None
    if isinstance(stamp_ns, bool) or not isinstance(stamp_ns, (int, np.integer)):
        raise InputError(f"stamp_ns must be integer nanoseconds or None, got {stamp_ns!r}")
    if not -(2**63) <= stamp_ns < 2**63:
        raise InputError(f"stamp_ns must fit into 64 bits, got {stamp_ns}")
    return int(stamp_ns)
