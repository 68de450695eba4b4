"""Hostile bytes into every decoder: only InputError may come out, and nothing large.

A small seeded budget runs by default; MMFUSE_FUZZ=1000000 sets the number of inputs.
"""

import array
import resource
import types

import cv2
import numpy as np
import pytest
from fuzz import BUDGET, EDGES, mutate, pick
from geometry_msgs.msg import WrenchStamped
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import (
    Float32,
    Float32MultiArray,
    Int16MultiArray,
    MultiArrayDimension,
    UInt8MultiArray,
)

from mmfuse_ros.config import Config
from mmfuse_ros.errors import InputError
from mmfuse_ros.ros.adapters import make_adapter
from mmfuse_ros.ros.adapters.audio import decode_pcm
from mmfuse_ros.ros.adapters.images import MAX_SIDE
from mmfuse_ros.ros.adapters.messages import MAX_SIGNAL_BYTES
from mmfuse_ros.samples import Chunk, Frame, Modality

# The memory that one decoded input may take beside the input: the picture twice (BGR, then RGB).
MAX_GROWTH_MB = 2 * 3 * MAX_SIDE * MAX_SIDE // 2**20 + 64

ENCODINGS = ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "8UC1", "8UC3", "16UC1"]
ENCODINGS += ["yuv422", "yuv422_yuy2", "nv12", "nv21", "rgb16", "32FC1", "", "bayer_rggb8"]
ENCODINGS += ["bayer_bggr16", "bayer_gbrg8", "bayer_grbg16"]


def number(rng, low=1, high=48):
    return int(pick(rng, EDGES)) if rng.random() < 0.2 else int(rng.integers(low, high))


def seeds():
    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    picture[:12] = 90
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    out = [
        cv2.imencode(".jpg", picture)[1].tobytes(),
        cv2.imencode(".jpg", picture, progressive)[1].tobytes(),
        cv2.imencode(".jpg", picture[..., 0])[1].tobytes(),
        cv2.imencode(".png", picture)[1].tobytes(),
        cv2.imencode(".png", picture[..., 0].astype(np.uint16) * 255)[1].tobytes(),
        cv2.imencode(".png", np.dstack([picture, picture[..., 0]]))[1].tobytes(),
    ]
    return out


SEEDS = seeds()


def raw_image(rng):
    width, height = number(rng), number(rng)
    step = width * int(rng.integers(1, 7)) + int(rng.integers(3))
    size = min(height * step * int(rng.integers(1, 3)), 4096)
    message = Image(width=width, height=height, encoding=pick(rng, ENCODINGS))
    message.step = min(step if rng.random() < 0.9 else number(rng), 2**32 - 1)
    message.is_bigendian = int(rng.integers(2))
    message.data = array.array("B", rng.bytes(size))
    return Modality.CAMERA_1, {}, message


def compressed_image(rng):
    data = mutate(rng, pick(rng, SEEDS)) if rng.random() < 0.95 else rng.bytes(200)
    message = CompressedImage(format=pick(rng, ["jpeg", "png", "", "16UC1; compressedDepth"]))
    message.data = array.array("B", data)
    return Modality.CAMERA_2, {"camera_2.type": "compressed"}, message


PCM = ["s16le", "s16be", "s24le", "s32le", "f32le", "u8"]
MAGIC = [b"", b"ID3\3", b"OggS", b"RIFF\0\0\0\0WAVE", b"fLaC", b"\xff\xfb\x90\0", b"\xff\xf1\x50"]


def audio_bytes(rng):
    data = pick(rng, MAGIC) + rng.bytes(int(rng.integers(0, 700)))
    parameters = {
        "audio.type": "std_msgs/msg/UInt8MultiArray",
        "audio.encoding": pick(rng, PCM),
        "audio.channels": pick(rng, [1, 2, 3, 64]),
    }
    return Modality.AUDIO, parameters, UInt8MultiArray(data=array.array("B", data))


def hostile_floats(rng, count):
    bits = rng.integers(0, 2**32, count, dtype=np.uint32)
    values = rng.standard_normal(count).astype(np.float32)
    wild = rng.random(count) < 0.02
    values[wild] = bits.view(np.float32)[wild]
    return array.array("f", values.tobytes())


def layout(rng, message):
    count = len(message.data)
    for _ in range(int(pick(rng, [0, 0, 1, 2, 3, 200]))):
        size = pick(rng, [1, 8, max(1, count // 8), count, number(rng)])
        label = pick(rng, ["", "samples", "channels"])
        message.layout.dim.append(MultiArrayDimension(label=label, size=size))
    message.layout.data_offset = 0 if rng.random() < 0.9 else number(rng)
    return message


def audio_array(rng):
    count = int(rng.integers(0, 300))
    message = Float32MultiArray(data=hostile_floats(rng, count))
    if rng.random() < 0.5:
        message = Int16MultiArray(data=array.array("h", rng.bytes(2 * count)))
    kind = type(message).__name__
    parameters = {"audio.type": f"std_msgs/msg/{kind}", "audio.channels": pick(rng, [1, 2, 8])}
    return Modality.AUDIO, parameters, layout(rng, message)


def emg_array(rng):
    count = 8 * int(rng.integers(0, 20)) + (int(rng.integers(8)) if rng.random() < 0.2 else 0)
    message = Float32MultiArray(data=hostile_floats(rng, count))
    parameters = {"emg.layout": pick(rng, ["channels", "samples_channels"])}
    return Modality.EMG, parameters, layout(rng, message)


def pressure(rng):
    value = float(hostile_floats(rng, 50)[0])
    if rng.random() < 0.5:
        return Modality.PRESSURE, {}, Float32(data=value)
    message = WrenchStamped()
    message.wrench.force.z = float(np.frombuffer(rng.bytes(8), np.float64)[0])
    message.header.stamp.sec = int(rng.integers(-(2**31), 2**31))
    message.header.stamp.nanosec = int(rng.integers(0, 2**32))
    return Modality.PRESSURE, {"pressure.type": "geometry_msgs/msg/WrenchStamped"}, message


GENERATORS = [raw_image, compressed_image, audio_bytes, audio_array, emg_array, pressure]


@pytest.mark.parametrize("generate", GENERATORS)
def test_only_input_errors_come_out(generate):
    rng = np.random.default_rng(GENERATORS.index(generate))
    adapters = {}
    used = refused = 0
    arrival_ns = 1_700_000_000 * 10**9
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(max(1, (BUDGET or 12_000) // len(GENERATORS))):
        modality, parameters, message = generate(rng)
        key = tuple(parameters.items())
        if key not in adapters:
            adapters[key] = make_adapter(modality, Config.from_flat(parameters))
        arrival_ns += int(rng.integers(0, 50_000_000))
        try:
            sample = adapters[key].convert(message, arrival_ns)
            if isinstance(sample, Frame):
                check_picture(sample.decode())
            else:
                check_chunk(sample)
            used += 1
        except InputError as error:
            assert error.reason.isidentifier(), error  # noqa: PT017
            assert len(str(error)) < 600, error  # noqa: PT017
            refused += 1
    # The generator must reach both sides of the checks.
    assert used > 0
    assert refused > 0
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    assert grown_mb < MAX_GROWTH_MB


def check_picture(picture):
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert max(picture.shape) <= MAX_SIDE


def check_chunk(chunk):
    assert isinstance(chunk, Chunk)
    assert chunk.values.dtype == np.float32
    assert chunk.values.ndim == 2
    assert len(chunk.values) >= 1
    assert chunk.values.nbytes <= 4 * MAX_SIGNAL_BYTES
    assert np.isfinite(chunk.values).all()
    assert 1 <= chunk.rate_hz <= 384000


@pytest.mark.parametrize("encoding", PCM)
def test_every_length_of_bytes_is_read_or_refused(encoding):
    for size in range(40):
        try:
            samples = decode_pcm(np.zeros(size, np.uint8), encoding)
        except InputError:
            continue
        assert samples.size >= 1


@pytest.mark.parametrize("data", [None, "text", [None], [[1, 2], [3]], [2**80], object(), 1j])
@pytest.mark.parametrize("modality", [Modality.AUDIO, Modality.PRESSURE, Modality.EMG])
def test_data_that_is_no_array_of_numbers_is_refused(modality, data):
    """A field path may lead to anything; a plain class holds what message classes would not."""
    message = types.SimpleNamespace(data=data, layout=Float32MultiArray().layout)
    adapter = make_adapter(modality, Config())
    with pytest.raises(InputError):
        adapter.convert(message, 1)


def test_a_huge_message_costs_no_more_than_itself():
    """100 MB on every topic: refused, without a copy of it."""
    data = array.array("B", bytes(100 * 2**20))
    messages = [
        (Modality.CAMERA_1, {}, Image(width=1, height=1, step=3, encoding="rgb8", data=data)),
        (Modality.CAMERA_2, {"camera_2.type": "compressed"}, CompressedImage(data=data)),
        (
            Modality.AUDIO,
            {"audio.type": "std_msgs/msg/UInt8MultiArray"},
            UInt8MultiArray(data=data),
        ),
        (Modality.EMG, {}, Int16MultiArray(data=array.array("h", data.tobytes()))),
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for modality, parameters, message in messages:
        adapter = make_adapter(modality, Config.from_flat(parameters))
        if modality is Modality.CAMERA_1:
            assert adapter.convert(message, 1).decode().shape == (1, 1, 3)
            continue
        with pytest.raises(InputError):
            adapter.convert(message, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50 * 1024
