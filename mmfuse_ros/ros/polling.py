"""Fewer and cheaper turns of rclpy's executor, each of which costs ten times what a sample does.

At 2 x 1 kHz a turn for every message takes most of a core, and a backlog that a stall leaves is
worked off one turn at a time while images are lost. So waiting messages are read in one go. The
cost of a turn grows with what it waits for, and most of that is QoS events that never come.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.subscription import Subscription

_EVENTS_PERIOD_S = 1.0
_EVENTS_OPEN_S = 0.05  # several turns of a node whose timers run at 100 Hz


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
    """Let the executor look at QoS events (loss, mismatch) once a second, not at each turn.

    Nothing is missed: DDS counts up, and the event stays until it is taken.
    """
    group = Seldom()
    for entity in (*node.subscriptions, *node.publishers):
        for handler in getattr(entity, "event_handlers", ()):
            handler.callback_group = group
            group.add_entity(handler)


def take_all(subscription: Subscription, limit: int) -> Iterator[tuple[Any, int]]:
    """Yield the messages that wait, `limit` at most, each with DDS' time of arrival (0: none)."""
    for _ in range(limit):
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is None:
            return
        message, info = taken
        yield message, int(info.get("received_timestamp", 0))
