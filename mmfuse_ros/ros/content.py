"""What a stream that arrives on time may still hide: a picture that stands, sound that clips."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

# Noise makes two pictures of a real sensor differ within their first bytes.
_HEAD_BYTES = 4096
# One repeat is a driver that stutters.
_MIN_REPEATS = 2

# Of full scale; converters and drivers saturate a little below it.
_CLIP_LEVEL = 0.999
_CLIP_MEMORY_S = 0.5


class Picture:
    """Notice that a camera sends one picture again and again, whatever its stamps say."""

    def __init__(self) -> None:
        self._data: Any = b""
        self._since_s = 0.0
        self._repeats = 0

    def add(self, data: Any) -> None:
        """Take in the bytes of the newest message; they are held until the next."""
        if self._equal(data):
            self._repeats += 1
            return
        self._data, self._repeats, self._since_s = data, 0, time.monotonic()

    @property
    def frozen_s(self) -> float:
        """Seconds since the picture last changed; 0 while it changes."""
        return time.monotonic() - self._since_s if self._repeats >= _MIN_REPEATS else 0.0

    def _equal(self, data: Any) -> bool:
        before = self._data
        if len(data) != len(before) or not len(data):
            return False
        head = slice(_HEAD_BYTES)
        if bytes(data[head]) != bytes(before[head]):
            return False
        return np.array_equal(np.frombuffer(data, np.uint8), np.frombuffer(before, np.uint8))


class Clipping:
    """The share of a microphone's recent samples that lie at full scale."""

    def __init__(self) -> None:
        self.share = 0.0

    def add(self, values: npt.NDArray[np.float32], rate_hz: float) -> None:
        """Take in a chunk, (samples, channels), of full scale 1."""
        clipped = np.count_nonzero(np.abs(values) >= _CLIP_LEVEL) / values.size
        weight = min(1.0, len(values) / (_CLIP_MEMORY_S * rate_hz))
        self.share += weight * (clipped - self.share)
