"""Pressure and EMG adapters, made with the real message classes."""

import array

import numpy as np
import pytest
from geometry_msgs.msg import WrenchStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import FluidPressure, JointState
from std_msgs.msg import (
    Float32,
    Float32MultiArray,
    Float64,
    Int16MultiArray,
    MultiArrayDimension,
    String,
)

from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.ros.adapters import make_adapter
from mmfuse_ros.samples import Modality

T0 = 1_700_000_000 * 10**9


def adapter(stream, **parameters):
    flat = {f"{stream}.{name}": value for name, value in parameters.items()}
    return make_adapter(Modality(stream), Config.from_flat(flat))


def convert(stream, message, **parameters):
    package = type(message).__module__.split(".")[0]
    parameters.setdefault("type", f"{package}/msg/{type(message).__name__}")
    return adapter(stream, **parameters).convert(message, T0)


def emg(data, kind=Float32MultiArray, **dims):
    code = "f" if kind is Float32MultiArray else "h"
    message = kind(data=array.array(code, data))
    message.layout.dim = [MultiArrayDimension(label=k, size=n) for k, n in dims.items()]
    return message


def wrench(x, y, z, sec=3):
    message = WrenchStamped()
    force = message.wrench.force
    force.x, force.y, force.z = x, y, z
    message.header.stamp.sec, message.header.frame_id = sec, "tool"
    return message


@pytest.mark.parametrize("kind", [Float32, Float64])
def test_a_number_is_one_sample(kind):
    chunk = convert("pressure", kind(data=2.5))
    assert chunk.values.tolist() == [[2.5]]
    assert chunk.values.dtype == np.float32
    assert (chunk.stamp_ns, chunk.rate_hz, chunk.frame_id) == (T0, 1000.0, "")


def test_the_force_along_z_is_the_pressure_of_a_wrench():
    chunk = convert("pressure", wrench(1.0, 2.0, 3.0))
    assert chunk.values.tolist() == [[3.0]]
    assert (chunk.stamp_ns, chunk.frame_id) == (3 * 10**9, "tool")


@pytest.mark.parametrize(
    ("field", "channels", "expected"),
    [
        ("wrench.force.x", 1, [[1.0]]),
        ("wrench.force", 3, [[1.0, 2.0, 3.0]]),
        ("wrench", 6, [[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]]),
    ],
)
def test_a_field_path_leads_to_a_number_or_a_group_of_them(field, channels, expected):
    chunk = convert("pressure", wrench(1.0, 2.0, 3.0), field=field, channels=channels)
    assert chunk.values.tolist() == expected


def test_fluid_pressure_and_arrays_of_other_types():
    assert convert("pressure", FluidPressure(fluid_pressure=101325.0)).values[0, 0] == 101325.0
    joints = JointState(effort=[1.0, 2.0], position=[5.0])
    assert convert("emg", joints, field="effort", channels=2).values.tolist() == [[1.0, 2.0]]
    assert convert("pressure", joints, field="position[0]").values.tolist() == [[5.0]]
    with pytest.raises(InputError, match=r"position\[0\] must exist in every message"):
        convert("pressure", JointState(), field="position[0]")


@pytest.mark.parametrize("kind", [Float32MultiArray, Int16MultiArray])
def test_one_sample_of_channels(kind):
    chunk = convert("emg", emg(range(8), kind))
    assert chunk.values.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    assert chunk.stamp_ns == T0


def test_several_samples_end_at_the_arrival():
    chunk = convert("emg", emg(range(24)), layout="samples_channels")
    assert chunk.values.shape == (3, 8)
    assert chunk.values[2, 7] == 23.0
    assert chunk.stamp_ns == T0 - 2_000_000


def test_a_layout_given_is_honoured():
    planar = emg(range(24), channels=8, samples=3)
    chunk = convert("emg", planar, layout="samples_channels")
    assert chunk.values[:, 0].tolist() == [0.0, 1.0, 2.0]
    rows = emg(range(24), samples=3, channels=8)
    assert convert("emg", rows, layout="samples_channels").values[:, 0].tolist() == [0, 8, 16]
    assert convert("emg", emg(range(8), values=8)).values.shape == (1, 8)


@pytest.mark.parametrize(
    ("message", "parameters", "reason", "text"),
    [
        (emg(range(7)), {}, "channels", "hold 8 values a message, got 7; set emg.channels, or"),
        (emg(range(16)), {}, "channels", "emg.layout: samples_channels"),
        (
            emg(range(9)),
            {"layout": "samples_channels"},
            "channels",
            "hold a multiple of 8 values a message, got 9",
        ),
        (emg([]), {}, "empty", "emg must hold at least one sample, got none"),
        (emg([0.0] * 7 + [float("nan")]), {}, "not_finite", "emg must be finite"),
        (emg([0.0] * 7 + [float("inf")]), {}, "not_finite", "emg must be finite"),
        (emg(range(24), samples=4, channels=8), {}, "layout", r"24 values .* sizes \[4, 8\]"),
        (emg(range(24), samples=3, channels=8), {}, "channels", "hold 8 values a message, got 24"),
        (
            emg(range(24), samples=8, channels=3),
            {"layout": "samples_channels"},
            "channels",
            r"emg.channels \(8\) must equal the layout's, got 3 of 8 x 3",
        ),
        (emg(range(8), a=2, b=2, c=2), {}, "layout", "one or two dimensions, got 3"),
        (emg([0] * 2**23, Int16MultiArray), {}, "channels", "got 8388608"),
        (emg([0] * (2**23 + 8), Int16MultiArray), {}, "too_large", "at most 16 MiB"),
    ],
)
def test_what_breaks_a_rule_is_refused(message, parameters, reason, text):
    with pytest.raises(InputError, match=text) as error:
        convert("emg", message, **parameters)
    assert error.value.reason == reason


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_a_number_that_is_no_float32_is_refused(value):
    with pytest.raises(InputError, match="pressure must be finite"):
        convert("pressure", Float64(data=value))


def test_large_values_are_finite():
    assert convert("emg", emg([3e38] * 8)).values[0, 0] == np.float32(3e38)


def test_headers_are_trusted_sample_by_sample_or_not_at_all():
    message = wrench(0.0, 0.0, 1.0, sec=9)
    source = adapter("pressure", type="geometry_msgs/msg/WrenchStamped", offset_s=0.5)
    assert source.convert(message, T0).stamp_ns == 9_500_000_000
    message.header.stamp.nanosec = 7
    assert source.convert(message, T0).stamp_ns == 9_500_000_007
    by_arrival = adapter("pressure", type="geometry_msgs/msg/WrenchStamped", stamps="arrival")
    assert by_arrival.convert(message, T0).stamp_ns == T0


def test_a_stamp_of_zero_stays_zero():
    source = adapter("pressure", type="geometry_msgs/msg/WrenchStamped", offset_s=0.5)
    assert source.convert(wrench(0.0, 0.0, 0.0, sec=0), T0).stamp_ns == 0
    assert adapter("emg", offset_s=0.5).convert(emg(range(8)), 0).stamp_ns == 0


def test_fields_that_lead_nowhere_are_configuration_errors():
    with pytest.raises(
        ConfigError, match=r"must be a field of WrenchStamped.*here it has x, y, z"
    ):
        adapter("pressure", type="geometry_msgs/msg/WrenchStamped", field="wrench.force.w")
    with pytest.raises(ConfigError, match=r"must read like wrench.force.z"):
        adapter("pressure", field="data;import os")
    with pytest.raises(ConfigError, match=r"pressure.field must name the value of a sensor_msgs"):
        adapter("pressure", type="sensor_msgs/msg/JointState")


def test_text_is_no_number():
    with pytest.raises(InputError, match="must hold numbers") as error:
        convert("pressure", String(data="3.5"))
    assert error.value.reason == "content"
    with pytest.raises(InputError, match="must lead to numbers, got a Header"):
        convert("pressure", wrench(0.0, 0.0, 0.0), field="header")


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60
    ),
    channels=st.integers(1, 8),
    several=st.booleans(),
)
def test_values_come_through_unchanged_or_not_at_all(values, channels, several):
    layout = "samples_channels" if several else "channels"
    whole = len(values) % channels == 0 if several else len(values) == channels
    try:
        chunk = convert("emg", emg(values), channels=channels, layout=layout)
    except InputError as error:
        assert error.reason == "channels"  # noqa: PT017
        assert not whole
        return
    assert whole
    np.testing.assert_array_equal(chunk.values, np.array(values, np.float32).reshape(-1, channels))
