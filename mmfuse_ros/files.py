"""Files that appear whole or not at all, and reading that neither waits nor ends in no memory."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a new draft; when the block ends, it becomes `path`, flushed to the disk.

    A reader sees the old file or the new one, also after a power cut. When the block raises, the
    draft is removed and the old file stays. A link is followed; the mode of a file that is
    replaced is kept.

    Raises:
        OSError: the draft cannot be written, or `path` is there and no regular file.
    """
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    # Made here and not by the caller: it must be new, and must take the umask.
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    try:
        yield draft
        if mode is not None:
            draft.chmod(mode)
        sync(draft)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(target.parent)  # a rename survives a power cut only then


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return a regular file's bytes; nothing is read of one that is longer than `limit`.

    Raises:
        OSError: it cannot be read, is no regular file (a pipe would block, a device never
            ends), or is too long (EFBIG).
    """
    with _open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise OSError(
                errno.EFBIG, f"must be at most {limit} bytes, got {size}", os.fspath(path)
            )
        return stream.read(limit)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a regular file, read in blocks.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with _open_regular(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: str | os.PathLike[str]) -> None:
    """Flush a file, or a folder's entries, to the disk.

    Raises:
        OSError: it cannot be opened or flushed.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    # O_NONBLOCK: opening a pipe that nobody writes must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _mode(target: Path) -> int | None:
    """Return the mode of the file to be replaced, None where there is none."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    _require_regular(mode, target)  # a rename over /dev/null would replace the device
    return stat.S_IMODE(mode)


def _require_regular(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "must be a file, got a directory", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(
            errno.EINVAL, "must be a regular file, got a pipe, device or socket", os.fspath(path)
        )
