"""Pressure and EMG: numbers, arrays, or a field of any message, as samples of some channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.config import EmgConfig, PressureConfig
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.ros.adapters.layout import samples_of
from mmfuse_ros.ros.adapters.messages import (
    as_array,
    check_size,
    field_reader,
    is_finite,
    message_class,
    numbers,
)
from mmfuse_ros.ros.adapters.stamps import SignalStamps
from mmfuse_ros.samples import Chunk

# Where the value stands in the types that have one obvious place for it.
_FIELDS = {"WrenchStamped": "wrench.force.z", "FluidPressure": "fluid_pressure"}

_LARGEST = float(np.finfo(np.float32).max)


class SensorAdapter:
    """Adapter of pressure and EMG messages.

    A message holds one sample, or with `layout: samples_channels` several in a row, the channels
    of a sample side by side. Integers are kept as they are, as float32.

    Args:
        name: the parameter section, `pressure` or `emg`.
    """

    topic_suffix = ""

    def __init__(self, name: str, config: PressureConfig | EmgConfig) -> None:
        self._name = name
        self._channels = config.channels
        self._several = config.layout == "samples_channels"
        self._rate_hz = config.rate_hz
        self.message_type = message_class(config.type, f"{name}.type")
        path = config.field or _FIELDS.get(self.message_type.__name__, "data")
        if not config.field and not hasattr(self.message_type(), path.split(".")[0]):
            raise ConfigError(
                f"{name}.field must name the value of a {config.type}, got none; "
                "set it to a path such as wrench.force.z or position[0]"
            )
        read = field_reader(path, self.message_type, f"{name}.field")
        self._read: Callable[[Any], Any] = (lambda m: m.data) if path == "data" else read
        self._has_layout = path == "data" and hasattr(self.message_type(), "layout")
        self._stamps = SignalStamps(
            self.message_type, config.stamps, config.offset_s, config.rate_hz, f"{name}.rate_hz"
        )

    def convert(self, message: Any, arrival_ns: int) -> Chunk:
        """Return the message's samples."""
        value = self._read(message)
        if isinstance(value, (float, int)):
            values = self._scalar(value)
        else:
            values = self._array(value, message.layout if self._has_layout else None)
        stamp_ns = self._stamps.first_ns(message, len(values), self._rate_hz, arrival_ns)
        return Chunk(stamp_ns, values, self._rate_hz, self._stamps.frame_id(message))

    def _scalar(self, value: float) -> npt.NDArray[np.float32]:
        if self._channels != 1:
            raise self._wrong_count(1)
        if not -_LARGEST <= value <= _LARGEST:
            raise self._not_finite()
        return np.array(((value,),), np.float32)

    def _array(self, value: Any, layout: Any) -> npt.NDArray[np.float32]:
        if hasattr(value, "get_fields_and_field_types"):
            value = self._flatten(value)
        array = as_array(value)
        count, channels = array.size, self._channels
        check_size(count, array.itemsize, self._name)
        if array.dtype.kind == "f" and not is_finite(array):
            raise self._not_finite()
        if layout is not None and (layout.dim or layout.data_offset):
            array = samples_of(array, layout, channels, self._name)
            count = array.size
        if array.dtype != np.float32:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not is_finite(array.reshape(-1)):
                raise self._not_finite()
        if count != channels and (not self._several or count % channels or not count):
            raise self._wrong_count(count)
        return array.reshape(-1, channels)

    def _flatten(self, message: Any) -> list[float]:
        try:
            return list(numbers(message))
        except (TypeError, ValueError):
            raise InputError(
                f"{self._name}.field must lead to numbers, got a {type(message).__name__}; "
                "go on to one of its fields",
                "field",
            ) from None

    def _wrong_count(self, count: int) -> InputError:
        rule = "a multiple of " if self._several else ""
        remedy = "" if self._several else f", or {self._name}.layout: samples_channels"
        return InputError(
            f"{self._name} must hold {rule}{self._channels} values a message, got {count}; set "
            f"{self._name}.channels{remedy}",
            "channels",
        )

    def _not_finite(self) -> InputError:
        return InputError(
            f"{self._name} must be finite, got NaN or Inf; check the sensor's driver", "not_finite"
        )
