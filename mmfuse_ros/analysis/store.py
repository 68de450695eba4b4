"""The embedding store on disk: Arrow IPC segments, and a manifest that is replaced atomically.

A folder holds `segment-*.arrow` (written once, never changed), `manifest.json` (the segments that
count, and the rows of them that are deleted) and `lock` (held by a writer while it commits). A
commit writes its segments, flushes them to the disk, and only then renames the new manifest over
the old one. So a reader sees the state before the commit or after it, and a writer that dies at
any point leaves the state before; what it left behind is removed by the next commit.

Segments are mapped into memory, not read: readers of one machine share the pages. They are plain
Arrow files that any Arrow implementation opens.
"""

from __future__ import annotations

import fcntl
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.analysis.arrays import Array
from mmfuse_ros.errors import ConfigError, StoreError
from mmfuse_ros.files import atomic_write, read_bounded, sync

if TYPE_CHECKING:
    import pyarrow

FORMAT, VERSION = "mmfuse-embeddings", 1
MANIFEST, LOCK = "manifest.json", "lock"

_SEGMENT = re.compile(r"segment-[0-9a-f]{32}\.arrow")
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_DIMENSION = 1 << 20
# A writer may replace the segments between the reading of the manifest and of what it names.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Entry:
    """One segment as the manifest lists it; `deleted` are row numbers within the segment."""

    file: str
    rows: int
    size: int
    deleted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """One committed state of a store."""

    generation: int = 0
    dimension: int = 0
    next_id: int = 0
    segments: tuple[Entry, ...] = field(default=())


@dataclass(frozen=True)
class Columns:
    """The rows of a segment: the vectors mapped, the rest as Arrow columns or lists."""

    vectors: Array
    ids: npt.NDArray[np.int64]
    labels: Sequence[Any]
    stamps_ns: Sequence[Any]
    metadata: Sequence[Any]


def read(folder: Path) -> tuple[Manifest, list[Columns]]:
    """Return the newest committed state and its segments, in the manifest's order.

    Raises:
        StoreError: no store, one of a newer format, or a damaged one.
    """
    for attempt in range(_ATTEMPTS):
        manifest = read_manifest(folder)
        try:
            return manifest, [_read_segment(folder, e, manifest) for e in manifest.segments]
        except FileNotFoundError as error:
            if read_manifest(folder) == manifest or attempt == _ATTEMPTS - 1:
                raise StoreError(f"{folder} lacks a file of its manifest: {error}") from error
    raise AssertionError("unreachable")


def read_manifest(folder: Path) -> Manifest:
    """Return the newest committed state without its rows.

    Raises:
        StoreError: no store, one of a newer format, or a damaged one.
    """
    path = folder / MANIFEST
    try:
        data = read_bounded(path, _MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{folder} must be a folder that EmbeddingRetrieval.save made, it has no {MANIFEST}"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    try:
        raw = json.loads(data)
        kind, version = raw["format"], raw["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{path} is not a manifest of embeddings: {error}") from error
    if kind != FORMAT:
        raise StoreError(f"{path} must be of format {FORMAT}, got {kind!r}")
    if version != VERSION:
        raise StoreError(
            f"{path} must be of version {VERSION}, got {version!r}; a newer mmfuse_ros reads it"
        )
    try:
        return _parse(raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def write_segment(folder: Path, rows: Columns) -> Entry:
    """Write one segment and flush it to the disk; it counts once a manifest names it."""
    pa = _pyarrow()
    count, dimension = rows.vectors.shape
    schema = _schema(dimension)
    flat = np.ascontiguousarray(rows.vectors, dtype=np.float32).reshape(-1)
    batch = pa.record_batch(
        [
            pa.array(rows.ids, pa.int64()),
            pa.array(rows.stamps_ns, pa.int64()),
            pa.array(rows.labels, pa.large_string()),
            pa.array(rows.metadata, pa.large_string()),
            pa.Array.from_buffers(
                schema.field("vector").type, count, [None], children=[pa.array(flat)]
            ),
        ],
        schema=schema,
    )
    path = folder / f"segment-{uuid.uuid4().hex}.arrow"
    with path.open("xb") as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(batch)
    sync(path)
    return Entry(path.name, count, path.stat().st_size)


def commit(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the state of the store, then remove the files that it does not name.

    The caller holds the lock.
    """
    raw = {
        "format": FORMAT,
        "version": VERSION,
        "generation": manifest.generation,
        "dimension": manifest.dimension,
        "next_id": manifest.next_id,
        "segments": [
            {"file": e.file, "rows": e.rows, "size": e.size, "deleted": list(e.deleted)}
            for e in manifest.segments
        ],
    }
    sync(folder)  # the segments' names, before the manifest that relies on them
    with atomic_write(folder / MANIFEST) as draft:
        draft.write_text(json.dumps(raw))
    named = {e.file for e in manifest.segments}
    for path in folder.iterdir():
        stale = _SEGMENT.fullmatch(path.name) and path.name not in named
        if stale or path.name.startswith(f".{MANIFEST}."):
            path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the store's lock; wait for it. It ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise ConfigError(
            "pyarrow must be installed to save or load embeddings; "
            "pip install 'mmfuse_ros[retrieval]'"
        ) from None
    return pyarrow


def _schema(dimension: int) -> pyarrow.Schema:
    pa = _pyarrow()
    item = pa.field("item", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("stamp_ns", pa.int64()),
            pa.field("label", pa.large_string(), nullable=False),
            pa.field("metadata", pa.large_string()),
            pa.field("vector", pa.list_(item, dimension), nullable=False),
        ]
    )


def _parse(raw: dict[str, Any]) -> Manifest:
    def count(value: Any, limit: int = 1 << 62) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise ValueError(f"a count must be an integer from 0 to {limit}, got {value!r}")
        return value

    segments = []
    dimension = count(raw["dimension"], _MAX_DIMENSION)
    for item in raw["segments"]:
        if not _SEGMENT.fullmatch(item["file"]):
            raise ValueError(f"{item['file']!r} is not the name of a segment")
        entry = Entry(
            item["file"],
            count(item["rows"]),
            count(item["size"]),
            tuple(count(row, item["rows"] - 1) for row in item["deleted"]),
        )
        if entry.rows * dimension * 4 > entry.size:
            raise ValueError(f"{entry.file} cannot hold {entry.rows} rows in {entry.size} bytes")
        segments.append(entry)
    return Manifest(count(raw["generation"]), dimension, count(raw["next_id"]), tuple(segments))


def _read_segment(folder: Path, entry: Entry, manifest: Manifest) -> Columns:
    pa = _pyarrow()
    path = folder / entry.file
    size = path.stat().st_size
    if size != entry.size:
        raise StoreError(f"{path} must be {entry.size} bytes long, got {size}; it is damaged")
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.schema != _schema(manifest.dimension) or reader.num_record_batches != 1:
                raise StoreError(f"{path} does not hold one batch of embeddings")
            batch = reader.get_batch(0)
        batch.validate(full=True)
    except (StoreError, FileNotFoundError):
        raise
    except Exception as error:  # boundary: whatever a damaged file makes Arrow raise
        raise StoreError(f"{path} is damaged: {error}") from error
    ids = batch.column("id").to_numpy()
    if batch.num_rows != entry.rows or (np.diff(ids) <= 0).any():
        raise StoreError(f"{path} must hold {entry.rows} rows of rising id; it is damaged")
    if entry.rows and not 0 <= ids[0] <= ids[-1] < manifest.next_id:
        raise StoreError(f"{path} holds ids that the manifest has not given out; it is damaged")
    vectors = batch.column("vector").flatten().to_numpy().reshape(entry.rows, manifest.dimension)
    return Columns(
        vectors,
        ids,
        batch.column("label"),
        batch.column("stamp_ns"),
        batch.column("metadata"),
    )
