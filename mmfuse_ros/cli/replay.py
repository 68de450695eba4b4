"""`mmfuse replay BAG`: play a recording into DDS, its bytes untouched."""

from __future__ import annotations

import argparse
import time
from typing import Any

from mmfuse_ros.errors import ConfigError

# Simulated time must tick finer than the sensors that are stamped by it.
_CLOCK_PERIOD_S = 0.002
_DISCOVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", help="folder of a rosbag2 recording")
    parser.add_argument("--rate", type=float, default=1.0, help="speed, 1 is real time")
    parser.add_argument("--loop", action="store_true", help="start again at the end")
    parser.add_argument("--clock", action="store_true", help="publish /clock")
    parser.add_argument("--topics", nargs="*", help="play only these topics")
    parser.add_argument("--namespace", default="", help="put relative topics under this name")
    parser.add_argument(
        "--wait",
        type=float,
        default=_DISCOVERY_S,
        help="wait this long at most for a subscriber of each topic, seconds",
    )


def run(args: argparse.Namespace) -> int:
    """Play until the end or Ctrl-C; print what was sent."""
    import rclpy

    from mmfuse_ros.ros.bag import Bag

    if args.rate <= 0.0:
        raise ConfigError(f"--rate must be above 0, got {args.rate:g}")
    rclpy.init()
    node = rclpy.create_node("mmfuse_replay")
    try:
        with Bag(args.bag) as bag:
            player = Player(node, bag, args)
            player.wait(args.wait)
            while rclpy.ok():
                player.play(args.rate)
                if not args.loop:
                    break
        for topic, count in player.sent.items():
            print(f"{count:8d} {topic}")
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


class Player:
    """Publishes one recording's topics.

    Args:
        node: owns the publishers.
        bag: an open recording.
        args: `clock`, `topics` and `namespace` of the command line.
    """

    def __init__(self, node: Any, bag: Any, args: argparse.Namespace) -> None:
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rosgraph_msgs.msg import Clock

        from mmfuse_ros.ros.bag import message_class

        types = bag.topics
        chosen = set(args.topics or types)
        unknown = chosen - set(types)
        if unknown:
            raise ConfigError(
                f"--topics must name topics of the recording, got {sorted(unknown)[0]}; "
                f"it has {', '.join(sorted(types))}"
            )
        self._bag = bag
        # Reliable and deep: a reader that asks for best effort gets that, and none is refused.
        qos = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._publishers = {
            topic: node.create_publisher(message_class(types[topic]), args.namespace + topic, qos)
            for topic in sorted(chosen - {"/clock"})
        }
        self.sent = dict.fromkeys(self._publishers, 0)
        self._clock = node.create_publisher(Clock, "/clock", 10) if args.clock else None

    def wait(self, timeout_s: float) -> None:
        """Wait until some topic has a subscriber: what is sent before discovery is lost."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if any(p.get_subscription_count() for p in self._publishers.values()):
                time.sleep(0.5)
                return
            time.sleep(0.05)

    def play(self, rate: float) -> None:
        """Play once; stop early when the context shuts down."""
        import rclpy

        begun = time.monotonic()
        clock_ns = 0
        for record in self._bag.records(set(self._publishers)):
            due = begun + (record.stamp_ns - self._bag.start_ns) / 1e9 / rate
            while (ahead := due - time.monotonic()) > 0:
                if not rclpy.ok():
                    return
                if self._clock is not None:
                    clock_ns = self._tick(record.stamp_ns - int(ahead * 1e9 * rate), clock_ns)
                time.sleep(min(ahead, _CLOCK_PERIOD_S))
            if not rclpy.ok():
                return
            if self._clock is not None:
                clock_ns = self._tick(record.stamp_ns, clock_ns)
            self._publishers[record.topic].publish(record.data)
            self.sent[record.topic] += 1

    def _tick(self, now_ns: int, last_ns: int) -> int:
        """Publish /clock if a period has passed since the last; return the last time sent."""
        from rosgraph_msgs.msg import Clock

        assert self._clock is not None
        if 0 <= now_ns - last_ns < _CLOCK_PERIOD_S * 1e9:
            return last_ns
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now_ns, 10**9)
        self._clock.publish(message)
        return now_ns
