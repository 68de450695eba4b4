"""Read rosbag2 recordings (MCAP or sqlite3) as the bytes that were recorded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.rosbag2 import Reader, ReaderError

from mmfuse_ros.errors import ConfigError, InputError


@dataclass(frozen=True)
class Record:
    """One recorded message.

    Attributes:
        topic: as recorded.
        stamp_ns: when the recorder received it.
        data: the serialised message.
    """

    topic: str
    stamp_ns: int
    data: bytes


class Bag:
    """A recording, open for reading.

    Args:
        path: the recording's folder, the one that holds `metadata.yaml`.

    Raises:
        InputError: there is no readable recording at `path`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / "metadata.yaml").is_file():
            raise InputError(
                f"a recording must be a rosbag2 folder with a metadata.yaml, got {self.path}; "
                "name the folder that `ros2 bag record` made"
            )
        try:
            self._reader = Reader(self.path)
            self._reader.open()
        except (ReaderError, OSError, ValueError, KeyError) as error:
            raise InputError(f"{self.path} is not a readable recording: {error}") from error

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()

    @property
    def topics(self) -> dict[str, str]:
        """Message type of each topic."""
        return {c.topic: c.msgtype for c in self._reader.connections}

    @property
    def messages(self) -> int:
        return int(self._reader.message_count)

    @property
    def start_ns(self) -> int:
        return int(self._reader.start_time)

    @property
    def duration_s(self) -> float:
        return float(self._reader.duration) / 1e9

    def records(self, topics: set[str] | None = None) -> Iterator[Record]:
        """Yield the messages of `topics` (all where None) in recorded order.

        Raises:
            InputError: the file is damaged.
        """
        chosen = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        try:
            for connection, stamp_ns, data in self._reader.messages(connections=chosen):
                yield Record(connection.topic, stamp_ns, bytes(data))
        except (ReaderError, OSError, ValueError, KeyError) as error:
            raise InputError(f"{self.path} is damaged: {error}") from error


def message_class(type_name: str) -> Any:
    """Return the Python class of a message type such as `std_msgs/msg/String`.

    Raises:
        ConfigError: the type's package is not installed.
    """
    parts = type_name.split("/")
    try:
        return getattr(importlib.import_module(f"{parts[0]}.msg"), parts[-1])
    except (ImportError, AttributeError):
        raise ConfigError(
            f"message type {type_name} must be importable, it is not; install the ROS package "
            f"{parts[0]}"
        ) from None
