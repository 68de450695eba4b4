"""A process' resident memory, as Linux counts it, and what its allocator keeps of it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def resident_mb(pid: int | str = "self") -> float:
    """Return the resident memory of a process, by default this one, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def give_back() -> None:
    """Give memory that was freed back to the system.

    The GNU allocator keeps it: after a model of 2 GB about 0.7 GB, and the next comes on top.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
