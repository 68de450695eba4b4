"""Fewer and cheaper turns of rclpy's executor, each of which costs ten times what a sample does.

At 2 x 1 kHz a turn for every message takes most of a core, and a backlog that a stall leaves is
worked off one turn at a time while images are lost. So waiting messages are read in one go. The
cost of a turn grows with what it waits for, and most of that is QoS events that never come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.subscription import Subscription

# Windows that wait for late streams become due by time alone, and waiting signals are read at the
# latest then; this is how finely.
DUE_PERIOD_S = 0.02
_EVENTS_PERIOD_S = 1.0
_EVENTS_OPEN_S = 3 * DUE_PERIOD_S  # several turns of the executor, which that timer wakes
_UNSUPPORTED = 2**64 - 1  # RMW_MESSAGE_INFO_SEQUENCE_NUMBER_UNSUPPORTED


class LossCounter:
    """Counts messages that were never taken, from gaps in the publisher's sequence numbers.

    A message may be missing because the transport lost it or because the reader's history was
    full; the numbers cannot tell which. `lost` is None once messages come without numbers.

    DDS' own event for it (`message_lost`) is no substitute: while one is untaken, a wait of
    Fast DDS' returns at once, and the executor spins through thousands of empty turns a second.
    """

    def __init__(self) -> None:
        self.lost: int | None = 0
        self._last = 0

    def add(self, info: Mapping[str, Any], publishers: Callable[[], int]) -> None:
        """Take in a message's info; Humble's rclpy, and some transports, give no numbers."""
        number = info.get("publication_sequence_number") or 0
        if number in (0, _UNSUPPORTED):
            self.lost = None
        if self.lost is None:
            return
        gap = number - self._last - 1
        # Two publishers have two sequences, and a restarted one begins anew.
        if self._last and gap > 0 and publishers() == 1:
            self.lost += gap
        self._last = number


class Polled(CallbackGroup):
    """A group that no executor serves; `take_all` reads its subscriptions."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


class Seldom(CallbackGroup):
    """A group that an executor looks at for a moment of each second."""

    def can_execute(self, entity: Any) -> bool:
        return time.monotonic() % _EVENTS_PERIOD_S < _EVENTS_OPEN_S

    def beginning_execution(self, entity: Any) -> bool:
        return True

    def ending_execution(self, entity: Any) -> None:
        pass


def calm_events(node: Node) -> None:
    """Let the executor look at QoS events (mismatch) once a second, not at each turn.

    Nothing is missed: an event stays until it is taken.
    """
    group = Seldom()
    for entity in (*node.subscriptions, *node.publishers):
        for handler in getattr(entity, "event_handlers", ()):
            handler.callback_group = group
            group.add_entity(handler)


def take_all(subscription: Subscription, limit: int) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield the messages that wait, `limit` at most, each with what DDS tells of it."""
    for _ in range(limit):
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is None:
            return
        yield taken
