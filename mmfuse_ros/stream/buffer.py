"""What is kept of each stream: undecoded frames, and signals as one contiguous stretch."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

import numpy as np
import numpy.typing as npt

from mmfuse_ros.samples import NS_PER_S, Frame

_FIRST_CAPACITY = 1024

# Memory of one camera's undecoded frames; two are kept whatever their size.
MAX_FRAME_BYTES = 512 * 2**20

# Stamps that are remembered to measure a camera's rate: a second at 240 Hz.
_RECENT_STAMPS = 256


class FrameBuffer:
    """The newest frames of one camera, in order of their stamps.

    Args:
        max_frames: more than these are not kept, nor more than MAX_FRAME_BYTES.
    """

    def __init__(self, max_frames: int) -> None:
        self._max_frames = max_frames
        self._stamps: list[int] = []
        self._frames: list[Frame] = []
        self._used: list[bool] = []
        self._nbytes = 0
        self._recent: deque[int] = deque(maxlen=_RECENT_STAMPS)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def pending(self) -> int:
        """Frames that no window holds yet."""
        return self._used.count(False)

    def append(self, frame: Frame) -> int:
        """Add the newest frame; return how many unused ones gave way to it."""
        self._stamps.append(frame.stamp_ns)
        self._frames.append(frame)
        self._used.append(False)
        self._recent.append(frame.stamp_ns)
        self._nbytes += frame.nbytes
        unused = self._drop_oldest(len(self._frames) - self._max_frames)
        while self._nbytes > MAX_FRAME_BYTES and len(self._frames) > 2:
            unused += self._drop_oldest(1)
        return unused

    def evict(self, before_ns: int) -> int:
        """Forget frames older than `before_ns`; return how many of them were unused."""
        return self._drop_oldest(bisect_left(self._stamps, before_ns))

    def clear(self) -> int:
        """Forget everything; return how many frames were unused."""
        self._recent.clear()
        return self._drop_oldest(len(self._frames))

    def nearest(self, stamp_ns: int, floor_ns: int) -> int | None:
        """Return the index of the frame nearest to `stamp_ns` and not before `floor_ns`.

        Of two equally near ones the earlier is taken.
        """
        stamps = self._stamps
        first = bisect_left(stamps, floor_ns)
        after = bisect_left(stamps, stamp_ns, first)
        if after == len(stamps):
            return after - 1 if after > first else None
        if after > first and stamp_ns - stamps[after - 1] <= stamps[after] - stamp_ns:
            return after - 1
        return after

    def __getitem__(self, index: int) -> Frame:
        return self._frames[index]

    def use(self, first: int, last: int) -> int:
        """Mark frames [first, last) as part of a window; return how many were not before."""
        fresh = self._used[first:last].count(False)
        self._used[first:last] = [True] * (last - first)
        return fresh

    def rate_hz(self) -> float:
        """Return frames per second over about the last second, by their stamps."""
        stamps = list(self._recent)
        if len(stamps) < 2:
            return 0.0
        first = min(bisect_left(stamps, stamps[-1] - NS_PER_S), len(stamps) - 2)
        return (len(stamps) - 1 - first) * NS_PER_S / (stamps[-1] - stamps[first])

    def _drop_oldest(self, count: int) -> int:
        if count <= 0:
            return 0
        unused = self._used[:count].count(False)
        self._nbytes -= sum(frame.nbytes for frame in self._frames[:count])
        del self._stamps[:count], self._frames[:count], self._used[:count]
        return unused


class SignalBuffer:
    """Samples of one signal with their stamps, contiguous in memory.

    Samples are appended at the end of a linear array and forgotten at its front; when the end is
    reached the live part moves to the front, or the array doubles. So a window is one slice, and
    memory follows the sensor's true rate up to `max_samples`.

    Args:
        max_samples: more than these are not kept.

    Attributes:
        channels: values of one sample; 0 before the first.
        rate_hz: samples per second as the chunks say; 0 where they do not.
    """

    def __init__(self, max_samples: int) -> None:
        self._max_samples = max_samples
        self.channels = 0
        self.rate_hz = 0.0
        self._start = self._end = 0
        self._allocate(0, 0)

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def stamps(self) -> npt.NDArray[np.int64]:
        """A view of the stamps, (samples,), strictly increasing."""
        return self._stamps[self._start : self._end]

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """A view of the samples, (samples, channels)."""
        return self._values[self._start : self._end]

    @property
    def pending(self) -> int:
        """Samples that no window holds yet."""
        return len(self) - int(np.count_nonzero(self._used[self._start : self._end]))

    def append(
        self,
        stamps: int | npt.NDArray[np.int64],
        values: npt.NDArray[np.float32],
        evict_before_ns: int,
    ) -> int:
        """Add the newest samples, (samples, channels); return how many unused ones gave way.

        Samples before `evict_before_ns` are forgotten where room is needed.
        """
        count = len(values)
        lost = 0
        if self._end + count > len(self._stamps):
            if count > self._max_samples:
                lost = count - self._max_samples
                stamps, values, count = stamps[lost:], values[lost:], self._max_samples  # type: ignore[index]
            lost += self._make_room(count, evict_before_ns)
        end = self._end
        self._end = end + count
        self._stamps[end : self._end] = stamps
        self._values[end : self._end] = values
        if self._end - self._start > self._max_samples:
            lost += self._drop_oldest(self._end - self._start - self._max_samples)
        return lost

    def set_format(self, channels: int, rate_hz: float) -> int:
        """Start again with another format; return how many unused samples were forgotten."""
        lost = self.clear()
        if channels != self.channels:
            self.channels = channels
            self._allocate(_FIRST_CAPACITY, channels)
        self.rate_hz = rate_hz
        return lost

    def evict(self, before_ns: int) -> int:
        """Forget samples older than `before_ns`; return how many of them were unused."""
        return self._drop_oldest(int(self.stamps.searchsorted(before_ns)))

    def clear(self) -> int:
        """Forget everything; return how many samples were unused."""
        lost = self._drop_oldest(len(self))
        self._used[: self._end] = False
        self._start = self._end = 0
        return lost

    def use(self, first: int, last: int) -> int:
        """Mark samples [first, last) as part of a window; return how many were not before."""
        used = self._used[self._start + first : self._start + last]
        fresh = len(used) - int(np.count_nonzero(used))
        used[:] = True
        return fresh

    def recent_rate_hz(self) -> float:
        """Return samples per second over about the last second, by their stamps."""
        stamps = self.stamps
        if len(stamps) < 2:
            return 0.0
        first = min(int(stamps.searchsorted(stamps[-1] - NS_PER_S)), len(stamps) - 2)
        return (len(stamps) - 1 - first) * NS_PER_S / float(stamps[-1] - stamps[first])

    def held_share(self) -> float:
        """Return the share of the last second's samples that equal the sample before."""
        stamps = self.stamps
        if len(stamps) < 2:
            return 0.0
        recent = self.values[int(stamps.searchsorted(stamps[-1] - NS_PER_S)) :]
        if len(recent) < 2:
            return 0.0
        return float((recent[1:] == recent[:-1]).all(axis=1).mean())

    def _allocate(self, capacity: int, channels: int) -> None:
        self._values = np.empty((capacity, channels), np.float32)
        self._stamps = np.empty(capacity, np.int64)
        self._used = np.zeros(capacity, np.bool_)

    def _make_room(self, count: int, evict_before_ns: int) -> int:
        lost = self.evict(evict_before_ns)
        lost += self._drop_oldest(len(self) + count - self._max_samples)
        values, stamps, used = self.values, self.stamps, self._used[self._start : self._end]
        live = len(stamps)
        # Half of the array stays free, so that a move is paid for by as many appends.
        if 2 * (live + count) > len(self._stamps):
            self._allocate(max(_FIRST_CAPACITY, 3 * (live + count)), self.channels)
        # NumPy moves overlapping slices correctly.
        self._values[:live], self._stamps[:live], self._used[:live] = values, stamps, used
        self._used[live:] = False
        self._start, self._end = 0, live
        return lost

    def _drop_oldest(self, count: int) -> int:
        if count <= 0:
            return 0
        used = self._used[self._start : self._start + count]
        unused = len(used) - int(np.count_nonzero(used))
        self._start += count
        return unused
