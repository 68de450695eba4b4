"""Atomic writes and bounded reads, with real files, pipes, devices and killed writers."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmfuse_ros.files import atomic_write, read_bounded, sha256


def test_a_file_appears_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as draft:
        draft.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_old_file_and_removes_the_draft(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path) as draft:
        draft.open("wb").writelines([b"ne", None])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_mode_is_the_users(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "new") as draft:
            draft.write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask
    private = tmp_path / "private"
    private.touch(0o640)
    with atomic_write(private) as draft:
        draft.write_bytes(b"")
    assert private.stat().st_mode & 0o777 == 0o640


def test_a_link_is_followed(tmp_path):
    target, link = tmp_path / "v1", tmp_path / "current"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link) as draft:
        draft.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="regular file"), atomic_write(pipe):
        pytest.fail("the block must not run")
    with pytest.raises(IsADirectoryError, match="got a directory"), atomic_write(tmp_path):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "file"
    sizes = {10_000, 3_000_000}
    path.write_bytes(b"x" * 10_000)
    code = (
        "import sys\n"
        "from mmfuse_ros.files import atomic_write\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for size in (3_000_000, 10_000):\n"
        "        with atomic_write(sys.argv[1]) as draft:\n"
        "            draft.write_bytes(b'x' * size)\n"
    )
    for wait_s in (0.003, 0.011, 0.023, 0.037, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            assert path.stat().st_size in sizes
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert path.stat().st_size in sizes


def test_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, sys\n"
        "from mmfuse_ros.files import atomic_write\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_write(sys.argv[1]) as draft:\n"
        "        draft.write_bytes(b'x' * 100_000)\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], timeout=60)
    assert done.returncode == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_read_is_bounded(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    assert read_bounded(path, 1000) == b"x" * 1000
    with pytest.raises(OSError, match="at most 999 bytes, got 1000"):
        read_bounded(path, 999)
    # A sparse terabyte must be refused by its size, not read.
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="at most"):
        read_bounded(path, 1000)


@pytest.mark.parametrize("read", [lambda p: read_bounded(p, 10), sha256], ids=["read", "sha256"])
def test_reading_neither_waits_for_a_pipe_nor_follows_a_device(tmp_path, read):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    errors = []

    def attempt():
        for path in (pipe, "/dev/zero", tmp_path):
            try:
                read(path)
            except OSError as error:
                errors.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert ["regular file" in e for e in errors] == [True, True, False]
    assert "got a directory" in errors[2]


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = os.urandom(3 << 20) + b"tail"
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
