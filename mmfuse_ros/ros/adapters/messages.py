"""What all adapters share: message types, field paths, arrays and stamps."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.samples import NS_PER_S

_FEW = 64

# No sensor packs more into one message; a larger one is refused before it is copied.
MAX_SIGNAL_BYTES = 16 * 2**20


def message_class(name: str, parameter: str) -> type:
    """Import a message class by its ROS name, such as `std_msgs/msg/Float32`.

    Raises:
        ConfigError: no such name, package or message.
    """
    parts = name.split("/")
    if not 2 <= len(parts) <= 3 or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{parameter} must read package/msg/Name, got {name!r}")
    package, kind = parts[0], parts[-1]
    try:
        module = importlib.import_module(f"{package}.msg")
    except ImportError as error:
        raise ConfigError(
            f"{parameter} must be importable, got {name!r} ({error}); install "
            f"ros-$ROS_DISTRO-{package.replace('_', '-')}, or source the workspace that builds it"
        ) from None
    found = getattr(module, kind, None)
    if not isinstance(found, type):
        raise ConfigError(f"{parameter} must name a message of {package}, got {kind!r}")
    return found


_STEP = re.compile(r"([A-Za-z_]\w*)((?:\[\d+\])*)")


def field_reader(path: str, message_type: type, parameter: str) -> Callable[[Any], Any]:
    """Return a function that follows a path such as `wrench.force.z` or `position[0]`.

    Raises:
        ConfigError: the path cannot be read, or the message has no such field.
    """
    steps: list[str | int] = []
    for part in path.split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"{parameter} must read like wrench.force.z or data[0], got {path!r}"
            )
        steps.append(match[1])
        steps.extend(int(index) for index in re.findall(r"\d+", match[2]))
    value: Any = message_type()
    for step in steps:
        if isinstance(step, int):
            break  # an empty message has nothing to index
        if not hasattr(value, step):
            raise ConfigError(
                f"{parameter} must be a field of {message_type.__name__}, got {path!r}; "
                f"here it has {', '.join(_field_names(value)) or 'no fields'}"
            )
        value = getattr(value, step)

    def read(message: Any) -> Any:
        try:
            for step in steps:
                message = getattr(message, step) if isinstance(step, str) else message[step]
        except (AttributeError, IndexError, TypeError):
            raise InputError(
                f"{path} must exist in every message, got none; correct {parameter}", "field"
            ) from None
        return message

    return read


def _field_names(value: Any) -> list[str]:
    names: Any = getattr(value, "get_fields_and_field_types", dict)()
    return list(names) or [name for name in vars(type(value)) if not name.startswith("_")]


def numbers(value: Any) -> Iterator[float]:
    """Yield the numbers of a nested message, such as x, y, z of a Vector3, in their order."""
    fields = getattr(value, "get_fields_and_field_types", None)
    if fields is None:
        yield float(value)
        return
    for name in fields():
        yield from numbers(getattr(value, name))


def as_array(data: Any, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Return a message's sequence as a flat array, without a copy where its type allows.

    Distributions differ: `data` may be an array.array, bytes, a memoryview, an ndarray or a list.

    Args:
        dtype: converts to this; without it, what `data` says of itself.

    Raises:
        InputError: it does not hold numbers.
    """
    if isinstance(data, (bytes, bytearray)):
        array = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    else:
        try:
            array = np.asarray(data)
        except (ValueError, TypeError, OverflowError):
            array = np.empty(0, object)
    if array.ndim != 1:
        array = array.reshape(-1)
    if array.dtype.kind not in "iufb":
        raise InputError(
            f"an array must hold numbers, got {type(data).__name__} of {array.dtype}; "
            "correct the field",
            "content",
        )
    if dtype is None:
        return array
    wanted = np.dtype(dtype)
    if array.dtype.itemsize == 1 and wanted.itemsize == 1 and array.dtype != wanted:
        return array.view(wanted)
    return array if array.dtype == wanted else array.astype(wanted)


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Return whether no value is NaN or infinite."""
    # A sum is NaN or infinite if a value is; for one sample Python's is the cheapest.
    if values.size <= _FEW and math.isfinite(sum(values.tolist())):
        return True
    return bool(np.isfinite(values).all())


def check_size(count: int, itemsize: int, name: str) -> None:
    """Raise InputError where a signal's message is empty or absurdly large."""
    if not count:
        raise InputError(f"{name} must hold at least one sample, got none", "empty")
    if count * itemsize > MAX_SIGNAL_BYTES:
        raise InputError(
            f"{name} must be at most {MAX_SIGNAL_BYTES >> 20} MiB a message, got "
            f"{count * itemsize / 2**20:.1f} MiB; send shorter pieces",
            "too_large",
        )


def stamp_field(message_type: type) -> str:
    """Return the name of the field that holds a message's time, "" where it has none."""
    example = message_type()
    if hasattr(getattr(example, "header", None), "stamp"):
        return "header"
    return "timestamp" if hasattr(getattr(example, "timestamp", None), "nanosec") else ""


def header_ns(header: Any) -> int:
    """Return the stamp of a header in nanoseconds."""
    stamp = header.stamp
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)
