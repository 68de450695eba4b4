"""Look at the configured topics as they are published now: who, which type, QoS, rate, stamps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import rclpy
from rclpy import qos as rclpy_qos
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.ros.adapters import Adapter, make_adapter
from mmfuse_ros.ros.adapters.messages import header_ns, stamp_field
from mmfuse_ros.ros.topics import TOPICS
from mmfuse_ros.samples import NS_PER_S, Frame, Modality

# Long enough for a rate, where publishers are there at once.
_LISTEN_S = 2.0
_MAX_OFFSETS = 10_000


@dataclass
class Stream:
    """What was seen of one stream.

    Attributes:
        topic: its full name, remapped.
        expected: the configured message type, such as `sensor_msgs/msg/Image`.
        config_error: why there can be no subscription at all.
        publishers: node name and type of each publisher.
        refused: each publisher whose QoS keeps it from the node, with both sides' settings.
        doubtful: the same where the middleware says that it may.
        similar: other topics of the expected type, where this one has no publisher.
        messages, samples: how many came; samples are rows of a signal or images.
        listened_s: from the first message to the last.
        content_error: why the first unusable message could not be used.
        ages_s: arrival minus header stamp of the messages that have one.
        unstamped: messages whose header holds zero.
    """

    topic: str
    expected: str = ""
    config_error: str = ""
    publishers: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    similar: list[str] = field(default_factory=list)
    messages: int = 0
    samples: int = 0
    listened_s: float = 0.0
    content_error: str = ""
    ages_s: list[float] = field(default_factory=list)
    unstamped: int = 0


@dataclass
class Survey:
    """What was seen.

    Attributes:
        sim_time: somebody publishes /clock.
        nodes: full names of running nodes called mmfuse.
    """

    streams: dict[Modality, Stream]
    sim_time: bool
    nodes: list[str]


def survey(
    config: Config,
    *,
    wait_s: float,
    namespace: str = "",
    topics: Mapping[Modality, str] | None = None,
    qos_overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Survey:
    """Subscribe as the node would, for at most `wait_s`, and return what was seen.

    Args:
        topics: remapped names.
        qos_overrides: by topic, the subscription's policies as in a parameter file.
    """
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("mmfuse_doctor", context=context, namespace=namespace)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        listeners = {
            m: _Listener(node, m, config, (topics or {}).get(m, ""), qos_overrides or {})
            for m in config.enabled
        }
        end = time.monotonic() + wait_s
        complete_s = None
        while (now := time.monotonic()) < end:
            executor.spin_once(timeout_sec=0.05)
            for listener in listeners.values():
                listener.look()
            if all(listener.settled for listener in listeners.values()):
                complete_s = complete_s or now
                if now - complete_s > _LISTEN_S:
                    break
        for listener in listeners.values():
            listener.finish()
        nodes = [n for n in node.get_fully_qualified_node_names() if n.endswith("/mmfuse")]
        return Survey(
            {m: listener.stream for m, listener in listeners.items()},
            sim_time=bool(node.count_publishers("/clock")),
            nodes=nodes,
        )
    finally:
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.shutdown(context=context)


class _Listener:
    """One stream: its publishers, and a subscription while their type is right."""

    def __init__(
        self,
        node: Node,
        modality: Modality,
        config: Config,
        topic: str,
        overrides: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._node, self._modality = node, modality
        self._subscription: Any = None
        self._first_s = self._last_s = 0.0
        base = topic or TOPICS[modality]
        self.stream = Stream(node.resolve_topic_name(base))
        self._adapter: Adapter | None = None
        try:
            self._adapter = make_adapter(modality, config)
        except ConfigError as error:
            self.stream.config_error = str(error)
            return
        kind = self._adapter.message_type
        self.stream.topic = node.resolve_topic_name(base + self._adapter.topic_suffix)
        self.stream.expected = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        self._stamp_field = stamp_field(kind)
        self._qos = _requested(overrides.get(self.stream.topic, {}))

    @property
    def settled(self) -> bool:
        """Whether waiting longer can show nothing new but a rate."""
        s = self.stream
        return bool(s.config_error or s.messages or (s.publishers and not self._subscription))

    def look(self) -> None:
        """Note the publishers, and subscribe once one has the right type."""
        if self._adapter is None:
            return
        infos = self._node.get_publishers_info_by_topic(self.stream.topic)
        self.stream.publishers = [(info.node_name, info.topic_type) for info in infos]
        self.stream.refused, self.stream.doubtful = [], []
        for info in infos:
            self._compare(info)
        if self._subscription is None and self.stream.expected in {i.topic_type for i in infos}:
            self._subscription = self._node.create_subscription(
                self._adapter.message_type, self.stream.topic, self._on_message, self._qos
            )

    def _compare(self, info: Any) -> None:
        check = getattr(rclpy_qos, "qos_check_compatible", None)
        if check is None:
            return
        verdict, reason = check(info.qos_profile, self._qos)
        if verdict == rclpy_qos.QoSCompatibility.OK:
            return
        text = (
            f"{info.node_name} offers {_describe(info.qos_profile)}, the node asks for "
            f"{_describe(self._qos)}: {str(reason).strip().rstrip(';')}"
        )
        refused = verdict == rclpy_qos.QoSCompatibility.ERROR
        (self.stream.refused if refused else self.stream.doubtful).append(text)

    def _on_message(self, message: Any) -> None:
        assert self._adapter is not None
        stream = self.stream
        self._last_s = time.monotonic()
        self._first_s = self._first_s or self._last_s
        stream.messages += 1
        now_ns = self._node.get_clock().now().nanoseconds
        if self._stamp_field == "header" and len(stream.ages_s) < _MAX_OFFSETS:
            stamp_ns = header_ns(message.header)
            if stamp_ns:
                stream.ages_s.append((now_ns - stamp_ns) / NS_PER_S)
            else:
                stream.unstamped += 1
        try:
            sample = self._adapter.convert(message, now_ns)
            if isinstance(sample, Frame):
                stream.samples += 1
                if stream.samples == 1:
                    sample.decode()
            else:
                stream.samples += len(sample.values)
        except InputError as error:
            stream.content_error = stream.content_error or str(error)

    def finish(self) -> None:
        """Note how long it was listened to, and what else there is of the type."""
        self.stream.listened_s = self._last_s - self._first_s
        if not self.stream.publishers and self.stream.expected:
            self.stream.similar = sorted(
                name
                for name, types in self._node.get_topic_names_and_types()
                if self.stream.expected in types and self._node.count_publishers(name)
            )


def _requested(overrides: Mapping[str, Any]) -> QoSProfile:
    """Return the node's subscription QoS, with a parameter file's overrides."""
    qos = QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=100,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
        # Left to the middleware it would compare as unknown.
        liveliness=LivelinessPolicy.AUTOMATIC,
    )
    if "reliability" in overrides:
        qos.reliability = ReliabilityPolicy[str(overrides["reliability"]).upper()]
    if "durability" in overrides:
        qos.durability = DurabilityPolicy[str(overrides["durability"]).upper()]
    return qos


def _describe(qos: QoSProfile) -> str:
    return f"{qos.reliability.name.lower()}, {qos.durability.name.lower()}"
