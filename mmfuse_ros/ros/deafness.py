"""Notice that the transport delivers nothing any more since this process stood still.

Fast DDS takes a process that has not moved for a second for dead (`healthy_check_timeout_ms` of
its shared memory), and senders make its port anew. When it goes on, it makes one, too, and now
and then they end up with two: every publisher is there, and nothing arrives any more. A longer
timeout is no way out, for it delays discovery by as much. Only a new DDS participant mends it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from mmfuse_ros.samples import Modality

LOOK_PERIOD_S = 0.2
_STANDSTILL_S = 0.9  # a little less than Fast DDS waits
_BACKLOG_S = 1.0  # what had arrived before is still read
_PATIENCE_S = 5.0


class Source(Protocol):
    """An input, as far as it matters here."""

    last_arrival_s: float | None

    def count_publishers(self) -> int: ...


class Deafness:
    """Look at the inputs every LOOK_PERIOD_S, from the thread that reads them.

    Args:
        inputs: by stream; their arrivals are in time.monotonic().
    """

    def __init__(self, inputs: Mapping[Modality, Source]) -> None:
        self._inputs = inputs
        self._looked_s = time.monotonic()
        self._stood_still_s: float | None = None  # when the last standstill ended
        self._arriving: list[Source] = []  # before that

    def look(self) -> bool:
        """Return whether all that arrived before a standstill has been silent since."""
        now, before = time.monotonic(), self._looked_s
        self._looked_s = now
        if now - before > LOOK_PERIOD_S + _STANDSTILL_S:
            self._stood_still_s = now
            self._arriving = [s for s in self._inputs.values() if _since(s) > before - _BACKLOG_S]
        if self._stood_still_s is None or not self._arriving:
            return False
        if any(_since(s) > self._stood_still_s + _BACKLOG_S for s in self._arriving):
            self._stood_still_s = None
            return False
        return now - self._stood_still_s > _PATIENCE_S and all(
            s.count_publishers() for s in self._arriving
        )


def _since(source: Source) -> float:
    return float("-inf") if source.last_arrival_s is None else source.last_arrival_s
