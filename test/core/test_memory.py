"""Memory that is freed goes back to the system."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

# A process of its own: the heap of this one has room that earlier tests left.
SCRIPT = """
import json
from mmfuse_ros.memory import give_back, resident_mb

sizes = [resident_mb()]
blocks = [bytearray(b"x" * 100_000) for _ in range(2_000)]  # small enough for the heap
last = blocks[-10:]  # so that it cannot shrink by itself
sizes.append(resident_mb())
del blocks
sizes.append(resident_mb())
give_back()
sizes.append(resident_mb())
assert all(block.count(b"x") == 100_000 for block in last)
print(json.dumps(sizes))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only the GNU allocator keeps it"
)
def test_what_the_allocator_keeps_is_given_back():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, full, freed, given_back = json.loads(done.stdout)
    assert full - before > 180
    assert freed - before > 150  # it keeps it
    assert given_back - before < 20
