"""Counts of what happened to each stream's items: received = used + pending + dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from mmfuse_ros.samples import NS_PER_S

# Arrivals that are remembered to measure a rate: 2 s of a 1 kHz stream.
_ARRIVALS = 2048


class Ledger:
    """Account for every item of one stream: frames of a camera, samples of a signal.

    `received == used + pending + sum(dropped.values())` holds after every call to the
    synchroniser; its buffer knows the pending ones: kept, and not yet part of a window.
    """

    def __init__(self) -> None:
        self.received = 0
        self.used = 0
        self.dropped: dict[str, int] = {}
        self.arrivals: deque[int] = deque(maxlen=_ARRIVALS)

    def drop(self, reason: str, items: int) -> None:
        """Count items that will enter no window."""
        if items:
            self.dropped[reason] = self.dropped.get(reason, 0) + items

    def arrival_hz(self, now_ns: int) -> float:
        """Return messages per second over the last second before `now_ns`."""
        recent = 0
        for arrival_ns in reversed(self.arrivals):
            if now_ns - arrival_ns > NS_PER_S:
                break
            recent += 1
        if recent == _ARRIVALS and self.arrivals[-1] > self.arrivals[0]:
            # A stream so fast that its second outruns the memory.
            return (recent - 1) * NS_PER_S / (self.arrivals[-1] - self.arrivals[0])
        return float(recent)


@dataclass(frozen=True)
class StreamStatus:
    """One stream's account at one moment.

    Attributes:
        received, used, pending, dropped: items (frames, or samples) by fate.
        newest_ns: newest accepted stamp; None before the first.
        age_s: time since the newest stamp; NaN before the first, or without a clock.
        rate_hz: items per second by their stamps, over about the last second of data.
        arrival_hz: messages per second by their arrival, over the last second.
        held_share: share of a signal's recent samples that equal the sample before, as where a
            200 Hz sensor is repeated to fill 1 kHz; 0 for a camera.
    """

    received: int
    used: int
    pending: int
    dropped: Mapping[str, int]
    newest_ns: int | None
    age_s: float
    rate_hz: float
    arrival_hz: float
    held_share: float
