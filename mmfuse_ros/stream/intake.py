"""One stream's side of the synchroniser: its buffer, its newest stamp, its account."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmfuse_ros.config import Config
from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import NS_PER_S, Chunk, Frame, Modality
from mmfuse_ros.stream.buffer import FrameBuffer, SignalBuffer
from mmfuse_ros.stream.ledger import Ledger, StreamStatus

# Room for a sensor that runs at this multiple of its nominal rate.
_RATE_HEADROOM = 4

BEFORE_ALL = -(2**62)


class Intake:
    """What one stream brought.

    Attributes:
        newest_ns: newest accepted stamp; BEFORE_ALL before the first.
        violations: out-of-order samples in a row, increasing among themselves.
        window_s: length of a signal's window.
        grid_hz: rate of the window's grid; 0 where the messages state it (audio).
    """

    def __init__(self, modality: Modality, config: Config) -> None:
        self.modality = modality
        self.is_camera = modality.is_camera
        self.ledger = Ledger()
        self.newest_ns = self.last_violation_ns = BEFORE_ALL
        self.violations = 0
        self.frame_id = ""
        # One of the two holds samples; both exist so that neither needs a cast.
        self.frames = FrameBuffer(config.buffer.max_frames)
        self.samples = SignalBuffer(0)
        self.window_s = self.grid_hz = 0.0
        if not self.is_camera:
            section = getattr(config, modality.value)
            self.window_s = section.window_s
            self.grid_hz = 0.0 if modality is Modality.AUDIO else section.rate_hz
            seconds = config.buffer.age_s + config.sync.max_wait_s
            self.samples = SignalBuffer(int(_RATE_HEADROOM * seconds * section.rate_hz) + 1024)

    def keep(self, sample: Frame | Chunk, newest_ns: int, horizon_ns: int) -> None:
        """Add an accepted sample whose newest stamp is `newest_ns`.

        What overlaps the samples before it is dropped. What is older than `horizon_ns` may go
        where room is needed.
        """
        if isinstance(sample, Frame):
            self.ledger.drop("unused", self.frames.append(sample))
        else:
            self._keep_chunk(sample, horizon_ns)
        self.newest_ns = newest_ns
        self.frame_id = sample.frame_id

    def _keep_chunk(self, chunk: Chunk, horizon_ns: int) -> None:
        buffer, ledger, values = self.samples, self.ledger, chunk.values
        channels, rate_hz = values.shape[1], chunk.rate_hz
        if channels != buffer.channels or (rate_hz != buffer.rate_hz and rate_hz):
            ledger.drop("format_change", buffer.set_format(channels, rate_hz))
        stamps: Any = chunk.stamp_ns
        if len(values) > 1:
            offsets = np.rint(np.arange(len(values)) * (NS_PER_S / rate_hz))
            stamps = chunk.stamp_ns + offsets.astype(np.int64)
            if chunk.stamp_ns <= self.newest_ns:
                overlap = int(stamps.searchsorted(self.newest_ns, "right"))
                ledger.drop("duplicate", overlap)
                stamps, values = stamps[overlap:], values[overlap:]
        ledger.drop("unused", buffer.append(stamps, values, horizon_ns))

    def use(self, first: int, last: int) -> None:
        """Count items [first, last) of the buffer as part of a window."""
        buffer = self.frames if self.is_camera else self.samples
        self.ledger.used += buffer.use(first, last)

    def evict(self, before_ns: int) -> None:
        """Forget what is older than `before_ns`."""
        self.ledger.drop("unused", self.frames.evict(before_ns) + self.samples.evict(before_ns))

    def forget(self, reason: str) -> None:
        """Empty the buffer and begin anew."""
        self.ledger.drop(reason, self.frames.clear() + self.samples.clear())
        self.newest_ns = BEFORE_ALL
        self.violations = 0

    def status(self, now_ns: int) -> StreamStatus:
        """Return the stream's account at the node's time `now_ns` (0: no clock)."""
        newest_ns = None if self.newest_ns == BEFORE_ALL else self.newest_ns
        age_s = float("nan")
        if now_ns and newest_ns is not None:
            age_s = (now_ns - newest_ns) / NS_PER_S
        return StreamStatus(
            received=self.ledger.received,
            used=self.ledger.used,
            pending=self.frames.pending + self.samples.pending,
            dropped=dict(self.ledger.dropped),
            newest_ns=newest_ns,
            age_s=age_s,
            rate_hz=self.frames.rate_hz() if self.is_camera else self.samples.recent_rate_hz(),
            arrival_hz=self.ledger.arrival_hz(now_ns),
            held_share=self.samples.held_share(),
        )


def span_ns(chunk: Chunk) -> int:
    """Return the time from the first sample of a chunk to the last.

    Raises:
        InputError: it holds no sample, or states no rate.
    """
    if not len(chunk.values) or chunk.rate_hz <= 0.0:
        raise InputError(
            "a chunk must hold at least one sample, and a rate where it is audio or holds more, "
            f"got {len(chunk.values)} at {chunk.rate_hz:g} Hz; state the sensor's rate_hz",
            "format",
        )
    return round((len(chunk.values) - 1) * (NS_PER_S / chunk.rate_hz))
