"""Turn ROS messages into samples; the only place that knows their fields."""

from __future__ import annotations

from typing import Any, Protocol

from mmfuse_ros.config import Config
from mmfuse_ros.ros.adapters.audio import AudioAdapter
from mmfuse_ros.ros.adapters.compressed import CompressedImageAdapter
from mmfuse_ros.ros.adapters.images import ImageAdapter
from mmfuse_ros.ros.adapters.sensors import SensorAdapter
from mmfuse_ros.samples import Chunk, Frame, Modality

__all__ = ["Adapter", "make_adapter"]


class Adapter(Protocol):
    """Converts the messages of one stream.

    Attributes:
        message_type: the class to subscribe with.
        topic_suffix: appended to the stream's topic.
    """

    message_type: type
    topic_suffix: str

    def convert(self, message: Any, arrival_ns: int) -> Frame | Chunk:
        """Return the sample that a message holds.

        Args:
            arrival_ns: the node's time at its arrival; 0 while the clock has not started.

        Raises:
            InputError: the message cannot be used; `reason` names the rule it breaks.
        """
        ...


def make_adapter(modality: Modality, config: Config) -> Adapter:
    """Return the adapter of a stream.

    Raises:
        ConfigError: its message type or field path does not exist here.
    """
    section = getattr(config, modality.value)
    if modality.is_camera:
        return (CompressedImageAdapter if section.type == "compressed" else ImageAdapter)(section)
    if modality is Modality.AUDIO:
        return AudioAdapter(section)
    return SensorAdapter(modality.value, section)
