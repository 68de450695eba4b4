"""Send large best-effort images from one process to another, and count what arrives.

`python -m mmfuse_ros.ros.probe send|receive TOPIC COUNT`: each half prints one line of JSON. The
doctor runs both with the environment it is called in; what is lost here the node will lose too.
"""

from __future__ import annotations

import array
import json
import sys
import time
from collections.abc import Sequence

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

HEIGHT, WIDTH, RATE_HZ = 720, 1280, 30.0
MATCH_S = 10.0
_SETTLE_S = 0.5
_DRAIN_S = 1.0
# The depth covers the whole run: what is lost is lost on the way, not in the reader's history.
_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


def send(topic: str, count: int) -> dict[str, int]:
    """Publish `count` numbered images to a subscriber, once there is one."""
    node = rclpy.create_node("mmfuse_probe_send")
    publisher = node.create_publisher(Image, topic, _QOS)
    message = Image(encoding="rgb8", height=HEIGHT, width=WIDTH, step=3 * WIDTH)
    message.data = array.array("B", bytes(3 * WIDTH * HEIGHT))
    payload = serialize_message(message)
    end = time.monotonic() + MATCH_S
    while not publisher.get_subscription_count():
        if time.monotonic() > end:
            return {"sent": 0}
        time.sleep(0.02)
    time.sleep(_SETTLE_S)  # matched on this side; give the other the time to
    due = time.monotonic()
    for _ in range(count):
        publisher.publish(payload)
        due += 1.0 / RATE_HZ
        time.sleep(max(0.0, due - time.monotonic()))
    time.sleep(_DRAIN_S)
    return {"sent": count}


def receive(topic: str, count: int) -> dict[str, int]:
    """Count the images that arrive until all are there or nothing more comes."""
    node = rclpy.create_node("mmfuse_probe_receive")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    arrivals: list[float] = []
    # Serialised: what is measured is the transport, and not the unpacking of messages.
    node.create_subscription(
        Image, topic, lambda _: arrivals.append(time.monotonic()), _QOS, raw=True
    )
    latest = time.monotonic() + MATCH_S + _SETTLE_S + count / RATE_HZ + _DRAIN_S
    while len(arrivals) < count and time.monotonic() < latest:
        executor.spin_once(timeout_sec=0.1)
        # The publisher goes when it is done: nothing more will come.
        if arrivals and time.monotonic() - arrivals[-1] > 3.0 and not node.count_publishers(topic):
            break
    return {"received": len(arrivals)}


def main(args: Sequence[str] | None = None) -> int:
    """Run one half."""
    part, topic, count = (sys.argv[1:] if args is None else list(args))[:3]
    rclpy.init(args=[])
    try:
        result = {"send": send, "receive": receive}[part](topic, int(count))
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    finally:
        rclpy.try_shutdown()
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
