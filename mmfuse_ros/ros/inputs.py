"""One subscription a stream: message in, sample out, everything that goes wrong counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

from rclpy.clock import ROSClock
from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from mmfuse_ros.config import Config
from mmfuse_ros.errors import InputError
from mmfuse_ros.ros.adapters import make_adapter
from mmfuse_ros.ros.content import Clipping, Picture
from mmfuse_ros.ros.logging import traceback_of
from mmfuse_ros.ros.polling import LossCounter, Polled, take_all
from mmfuse_ros.ros.topics import TOPICS
from mmfuse_ros.samples import Chunk, Frame, Modality

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# While the model works on all cores this thread is stalled at times. A signal's history covers
# the longest stall at 1 kHz; of the cameras only the newest frames are of use.
_CAMERA_HISTORY = 5
_SIGNAL_HISTORY = 2000

Sink = Callable[[Modality, "Frame | Chunk", int], None]


class Input:
    """The subscription of one stream and its counters.

    Args:
        node: owns the subscription.
        modality: the stream.
        config: the node's configuration.
        sink: receives each sample with the node's time at its arrival.

    Raises:
        ConfigError: the message type cannot be imported.
    """

    def __init__(self, node: Node, modality: Modality, config: Config, sink: Sink) -> None:
        self.modality = modality
        self.received = 0
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self._losses = LossCounter()
        self.last_error = ""
        self.last_error_s = float("-inf")
        self.last_arrival_s: float | None = None
        self.incompatible = ""
        self.picture = Picture()
        self.clipping = Clipping()
        self._node = node
        self._clock = cast(ROSClock, node.get_clock())
        self._sink = sink
        self._adapter = make_adapter(modality, config)
        self._convert = self._adapter.convert
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=_CAMERA_HISTORY if modality.is_camera else _SIGNAL_HISTORY,
            reliability=ReliabilityPolicy.BEST_EFFORT,
        )
        self.subscription = node.create_subscription(
            self._adapter.message_type,
            TOPICS[modality] + self._adapter.topic_suffix,
            _with_info(self._on_message),
            qos,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            callback_group=None if modality.is_camera else Polled(),
        )

    @property
    def lost(self) -> int | None:
        """Messages that were sent and never taken; None where the transport cannot tell.

        Those that the reader's own history overwrote before they were taken are among them.
        """
        return self._losses.lost

    @property
    def topic(self) -> str:
        return str(self.subscription.topic_name)

    @property
    def type_name(self) -> str:
        """The expected message type, such as `sensor_msgs/msg/Image`."""
        kind = self._adapter.message_type
        return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"

    def count_publishers(self) -> int:
        return int(self._node.count_publishers(self.topic))

    def drain(self) -> None:
        """Take in the messages of a signal that wait; a camera's come by themselves.

        What a message raises is counted and logged here: the caller serves other streams.
        """
        if self.modality.is_camera:
            return
        waiting = take_all(self.subscription, _SIGNAL_HISTORY)
        while True:
            taken = None
            try:
                taken = next(waiting, None)
                if taken is None:
                    return
                self._on_message(*taken)
            except Exception as error:  # stream boundary: the others and the cameras go on
                if not self._node.context.ok():  # a signal has ended it meanwhile
                    return
                if taken is None:  # bytes that are no message of this type
                    self.received += 1
                    self.last_arrival_s = time.monotonic()
                    self._reject("undecodable", f"{type(error).__name__}: {error}")
                text = f"a message of {self.topic} failed\n{traceback_of(error)}"
                self._node.get_logger().error(text, throttle_duration_sec=1.0)
                if taken is None:
                    return

    def destroy(self) -> None:
        self._node.destroy_subscription(self.subscription)

    def _on_message(self, message: Any, info: Mapping[str, Any]) -> None:
        self.received += 1
        self._losses.add(info, self.count_publishers)
        received_ns = info.get("received_timestamp", 0)
        self.last_arrival_s = time.monotonic()
        now_ns = self._clock.now().nanoseconds
        # DDS stamps the arrival before any stall of this thread, by the system's clock. Under
        # simulated time that is the wrong clock, and Humble's rclpy passes no such stamp.
        by_system = received_ns and not self._clock.ros_time_is_active
        arrival_ns = received_ns if by_system else now_ns
        try:
            sample = self._convert(message, arrival_ns)
            if isinstance(sample, Chunk):
                if self.modality is Modality.AUDIO:
                    self.clipping.add(sample.values, sample.rate_hz)
            else:
                self.picture.add(message.data)
            self._sink(self.modality, sample, now_ns)
        except InputError as error:
            self._reject(error.reason, str(error))
        except Exception as error:
            self._reject("error", f"{type(error).__name__}: {error}")
            raise  # what nobody foresaw is shown with its traceback
        else:
            self.accepted += 1

    def _reject(self, reason: str, text: str) -> None:
        self.rejected[reason] += 1
        self.last_error = text
        self.last_error_s = time.monotonic()

    def _on_incompatible(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self.incompatible = f"QoS {policy} does not match: {self._both_sides()}"

    def _both_sides(self) -> str:
        ours = self.subscription.qos_profile
        sides = [
            f"{info.node_name} offers {_describe(info.qos_profile)}"
            for info in self._node.get_publishers_info_by_topic(self.topic)
        ]
        return f"this node asks for {_describe(ours)}; " + "; ".join(sides)

    def mismatch(self) -> str:
        """Return why a publisher of this topic cannot reach us, or "" where none is refused."""
        infos = self._node.get_publishers_info_by_topic(self.topic)
        wrong = [info for info in infos if info.topic_type != self.type_name]
        if wrong:
            return (
                f"{self.topic} must carry {self.type_name}, got {wrong[0].topic_type} from "
                f"{wrong[0].node_name}; set {self.modality}.type"
            )
        ours = self.subscription.qos_profile
        if self.incompatible and all(_compatible(info.qos_profile, ours) for info in infos):
            self.incompatible = ""  # who offered too little is gone
        return self.incompatible


def _compatible(offered: QoSProfile, asked: QoSProfile) -> bool:
    return qos_check_compatible(offered, asked)[0] != QoSCompatibility.ERROR


def _describe(qos: QoSProfile) -> str:
    return f"{qos.reliability.name.lower()}, {qos.durability.name.lower()}"


def _with_info(callback: Callable[..., None]) -> Callable[..., None]:
    """Return a subscription callback that also passes what DDS tells, where rclpy has it."""
    if not hasattr(Subscription, "CallbackType"):
        return lambda message: callback(message, {})
    return lambda message, info: callback(message, info)
