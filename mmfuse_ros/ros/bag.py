"""Read rosbag2 recordings (MCAP or sqlite3) as the bytes that were recorded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.rosbag2 import Reader

from mmfuse_ros.errors import ConfigError, InputError

_MAX_NUMBER = 1 << 64  # rosbags has 2**63 - 1 for the start of an empty recording


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

    What a damaged file makes `rosbags` raise comes out as InputError: from a struct's, a
    decompressor's or a database's own error to MemoryError, where a length in the file asks for
    more than the machine has. Lengths are not bounded before: they lie inside of records that
    only `rosbags` reads, and compressed parts are unpacked to whatever size they have.

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
        except Exception as error:  # boundary: see the class
            raise InputError(
                f"{self.path} is not a readable recording: {_cause(error)}; record it again, or "
                "mend it with `ros2 bag reindex`"
            ) from error
        try:
            self._check()
        except InputError:
            self._reader.close()
            raise

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()

    def _check(self) -> None:
        """Refuse numbers and names of another type: metadata.yaml is taken as it stands."""
        reader = self._reader
        numbers = (reader.message_count, reader.start_time, reader.duration)
        names = [name for c in reader.connections for name in (c.topic, c.msgtype)]
        if not all(type(n) is int and 0 <= n < _MAX_NUMBER for n in numbers):
            raise InputError(
                f"{self.path} must count messages and nanoseconds in whole numbers, got "
                f"{numbers}; its metadata is damaged, mend it with `ros2 bag reindex`"
            )
        if not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{self.path} must name topics and types as text, got {names}; its metadata is "
                "damaged, mend it with `ros2 bag reindex`"
            )

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
        except Exception as error:  # boundary: see the class
            raise InputError(
                f"{self.path} is damaged: {_cause(error)}; record it again"
            ) from error


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__


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
