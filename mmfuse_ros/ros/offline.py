"""The node's flow over a recording, without DDS and without losing a window to a busy model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rclpy.serialization import deserialize_message
from std_msgs.msg import String

from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.ros.adapters import make_adapter
from mmfuse_ros.ros.bag import Bag
from mmfuse_ros.ros.topics import PHASE, TOPICS
from mmfuse_ros.samples import NS_PER_S, Modality, Window
from mmfuse_ros.stream.synchronizer import Synchronizer


@dataclass
class Replayed:
    """What became of a recording's messages, filled while its windows are read."""

    messages: Counter[Modality] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)


def adapt(config: Config, bag: Bag, topics: Mapping[Modality, str] | None = None) -> Config:
    """Return the configuration with the streams and message types that a recording has.

    Args:
        topics: recorded topic of each stream; default the node's own, at the root.

    Raises:
        ConfigError: the recording has none of the enabled streams.
    """
    flat = config.to_flat()
    found = []
    for modality in config.enabled:
        kind = bag.topics.get(_recorded(_topic(modality, topics), bag))
        if kind is None:
            flat[f"{modality}.enabled"] = False
            continue
        found.append(modality)
        if modality.is_camera:
            compressed = kind.endswith("CompressedImage")
            flat[f"{modality}.type"] = "compressed" if compressed else "raw"
        else:
            flat[f"{modality}.type"] = kind
    if not found:
        raise ConfigError(
            f"a recording must hold a stream of {', '.join(TOPICS.values())}, got "
            f"{', '.join(sorted(bag.topics)) or 'none'}; map them with --topic STREAM=TOPIC"
        )
    if flat["sync.trigger"] not in found:
        flat["sync.trigger"] = found[0].value
    return Config.from_flat(flat)


def windows(
    bag: Bag,
    config: Config,
    *,
    rate_hz: float = 0.0,
    topics: Mapping[Modality, str] | None = None,
    account: Replayed | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Window]:
    """Yield a recording's windows; the recorder's stamps stand for arrival.

    Args:
        config: as `adapt` returns it.
        rate_hz: windows per second at most; 0 yields every one.
        account: counts messages and rejections where given.
        progress: called with the share of the recording that is read.
    """
    account = account or Replayed()
    adapters = {
        _recorded(_topic(m, topics), bag): (m, make_adapter(m, config)) for m in config.enabled
    }
    synchronizer = Synchronizer(config)
    period_ns = round(NS_PER_S / rate_hz) if rate_hz else 0
    next_ns = 0
    phase = ""
    for record in bag.records({*adapters, "/" + PHASE}):
        if record.topic not in adapters:
            phase = deserialize_message(record.data, String).data
            continue
        modality, adapter = adapters[record.topic]
        account.messages[modality] += 1
        try:
            message = deserialize_message(record.data, adapter.message_type)
            sample = adapter.convert(message, record.stamp_ns)
        except InputError as error:
            account.rejected[f"{modality}: {error}"] += 1
            continue
        synchronizer.offer(modality, sample, record.stamp_ns)
        for window in synchronizer.take(record.stamp_ns):
            if window.stamp_ns >= next_ns or window.stamp_ns < next_ns - 2 * period_ns:
                next_ns = window.stamp_ns + period_ns
                yield dataclasses.replace(window, phase=phase)
        if progress is not None and bag.duration_s:
            progress((record.stamp_ns - bag.start_ns) / NS_PER_S / bag.duration_s)


def _topic(modality: Modality, topics: Mapping[Modality, str] | None) -> str:
    return (topics or {}).get(modality) or "/" + TOPICS[modality]


def _recorded(topic: str, bag: Bag) -> str:
    """Return the topic, or its compressed companion where only that was recorded."""
    return topic if topic in bag.topics else topic + "/compressed"
