"""Memory that is freed goes back to the system."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from mmfuse_ros.memory import give_back, resident_mb


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only the GNU allocator keeps it"
)
def test_what_the_allocator_keeps_is_given_back():
    before = resident_mb()
    # Small enough for the heap; the last ones stay, so that it cannot shrink by itself.
    blocks = [np.ones(12_000) for _ in range(2_000)]
    held = blocks[-10:]
    assert resident_mb() - before > 150
    del blocks
    kept = resident_mb()
    assert kept - before > 100
    give_back()
    assert kept - resident_mb() > 100
    assert all((block == 1).all() for block in held)
