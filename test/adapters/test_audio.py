"""Audio adapters.

The std_msgs are the real classes. audio_common_msgs (two packages of that name) and foxglove_msgs
are not on PyPI: plain classes with the same fields stand for them.
"""

import array
import sys
import types

import numpy as np
import pytest
from std_msgs.msg import (
    Float32MultiArray,
    Header,
    Int16MultiArray,
    Int32MultiArray,
    MultiArrayDimension,
    UInt8MultiArray,
)

from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.ros.adapters import make_adapter
from mmfuse_ros.samples import Modality

T0 = 1_700_000_000 * 10**9
RNG = np.random.default_rng(0)
PCM = RNG.integers(-32768, 32768, 320).astype(np.int16)


def adapter(**parameters):
    return make_adapter(
        Modality.AUDIO, Config.from_flat({f"audio.{k}": v for k, v in parameters.items()})
    )


def convert(message, **parameters):
    return adapter(**parameters).convert(message, T0)


class AudioData:  # ros-drivers/audio_common
    def __init__(self, data=b""):
        self.data = array.array("B", data)


class AudioDataStamped:
    def __init__(self, data=b""):
        self.header = Header()
        self.audio = AudioData(data)


class PortAudioData:  # mgonzs13/audio_common
    def __init__(self):
        self.float32_data = array.array("f")
        self.int32_data = array.array("i")
        self.int16_data = array.array("h")
        self.int8_data = array.array("b")
        self.uint8_data = array.array("B")


class AudioInfo:
    def __init__(self):
        self.format = self.channels = self.rate = self.chunk = 0


class Audio:
    def __init__(self):
        self.audio_data = PortAudioData()
        self.info = AudioInfo()


class AudioStamped:
    def __init__(self):
        self.header = Header()
        self.audio = Audio()


class RawAudio:  # foxglove_msgs
    def __init__(self):
        self.timestamp = Header().stamp
        self.data = array.array("B")
        self.format = ""
        self.sample_rate = self.number_of_channels = 0


@pytest.fixture
def foreign(monkeypatch):
    """Make the packages importable, as where they are installed."""
    for name, kinds in {
        "audio_common_msgs": (AudioData, AudioDataStamped, Audio, AudioStamped),
        "foxglove_msgs": (RawAudio,),
    }.items():
        module = types.ModuleType(f"{name}.msg")
        for kind in kinds:
            setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, f"{name}.msg", module)


def test_int16_is_scaled_to_full_scale():
    chunk = convert(Int16MultiArray(data=array.array("h", PCM.tobytes())))
    assert chunk.values.shape == (320, 1)
    assert chunk.values.dtype == np.float32
    np.testing.assert_array_equal(chunk.values[:, 0], PCM.astype(np.float32) / 32768)
    assert chunk.rate_hz == 16000.0
    # Headerless: the last sample is as old as the arrival.
    assert chunk.stamp_ns == T0 - 319 * 62500


def test_floats_are_kept():
    values = RNG.uniform(-1, 1, 100).astype(np.float32)
    kind = "std_msgs/msg/Float32MultiArray"
    chunk = convert(Float32MultiArray(data=array.array("f", values.tobytes())), type=kind)
    np.testing.assert_array_equal(chunk.values[:, 0], values)


def test_stereo_is_mixed_down():
    left, right = PCM[:160].astype(np.float32), PCM[160:].astype(np.float32)
    both = np.stack([PCM[:160], PCM[160:]], axis=1)
    chunk = convert(Int16MultiArray(data=array.array("h", both.tobytes())), channels=2)
    np.testing.assert_allclose(chunk.values[:, 0], (left + right) / 65536, atol=1e-6)


WIDE = RNG.integers(-(2**31), 2**31, 64).astype(np.int32)
ENCODED = {
    "s16le": (PCM.astype("<i2").tobytes(), PCM / 2**15),
    "s16be": (PCM.astype(">i2").tobytes(), PCM / 2**15),
    "s24le": (WIDE.astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes(), WIDE / 2**31),
    "s32le": (WIDE.astype("<i4").tobytes(), WIDE / 2**31),
    "f32le": (np.linspace(-1, 1, 9, dtype="<f4").tobytes(), np.linspace(-1, 1, 9)),
    "u8": (bytes([0, 64, 128, 192, 255]), np.array([-1, -0.5, 0, 0.5, 127 / 128])),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_byte_arrays_are_read_by_encoding(encoding):
    data, expected = ENCODED[encoding]
    message = UInt8MultiArray(data=array.array("B", data))
    chunk = convert(message, type="std_msgs/msg/UInt8MultiArray", encoding=encoding)
    np.testing.assert_allclose(chunk.values[:, 0], expected, atol=2e-7)


def test_audio_data_of_ros_drivers(foreign):
    chunk = convert(AudioData(PCM.tobytes()), type="audio_common_msgs/msg/AudioData")
    np.testing.assert_array_equal(chunk.values[:, 0], PCM.astype(np.float32) / 32768)
    stamped = AudioDataStamped(PCM.tobytes())
    stamped.header.stamp.sec, stamped.header.frame_id = 7, "mic"
    chunk = convert(stamped, type="audio_common_msgs/msg/AudioDataStamped")
    assert (chunk.stamp_ns, chunk.frame_id, len(chunk.values)) == (7 * 10**9, "mic", 320)


@pytest.mark.parametrize(
    ("code", "name", "typecode", "scale"),
    [
        (1, "float32_data", "f", 1.0),
        (2, "int32_data", "i", 2.0**31),
        (8, "int16_data", "h", 2.0**15),
        (16, "int8_data", "b", 2.0**7),
        (32, "uint8_data", "B", 2.0**7),
    ],
)
def test_audio_stamped_of_portaudio(foreign, code, name, typecode, scale):
    message = AudioStamped()
    message.header.stamp.sec = 7
    message.audio.info.format, message.audio.info.channels = code, 2
    message.audio.info.rate = 48000
    values = [0, 1, 1, 0, 100, 100] if code != 1 else [0.0, 0.25, 0.25, 0.0, 1.0, 1.0]
    setattr(message.audio.audio_data, name, array.array(typecode, values))
    chunk = convert(message, type="audio_common_msgs/msg/AudioStamped")
    middle = 128 if code == 32 else 0
    expected = (np.array(values).reshape(-1, 2).mean(axis=1) - middle) / scale
    np.testing.assert_allclose(chunk.values[:, 0], expected, atol=1e-7)
    assert (chunk.rate_hz, chunk.stamp_ns) == (48000.0, 7 * 10**9)
    message.audio.info.format = 4
    with pytest.raises(InputError, match=r"PortAudio sample format .* got 4"):
        convert(message, type="audio_common_msgs/msg/AudioStamped")


def test_raw_audio_of_foxglove(foreign):
    message = RawAudio()
    message.timestamp.sec, message.format = 7, "pcm-s16"
    message.data = array.array("B", PCM.tobytes())
    message.sample_rate, message.number_of_channels = 44100, 1
    chunk = convert(message, type="foxglove_msgs/msg/RawAudio")
    np.testing.assert_array_equal(chunk.values[:, 0], PCM.astype(np.float32) / 32768)
    assert (chunk.rate_hz, chunk.stamp_ns) == (44100.0, 7 * 10**9)
    message.format = "opus"
    with pytest.raises(InputError, match="'pcm-s16', got 'opus'"):
        convert(message, type="foxglove_msgs/msg/RawAudio")


def test_a_rate_that_changes_midway_goes_into_the_chunk(foreign):
    source = adapter(type="foxglove_msgs/msg/RawAudio")
    message = RawAudio()
    message.format, message.number_of_channels = "pcm-s16", 1
    message.data = array.array("B", PCM.tobytes())
    rates = []
    for k, rate in enumerate((16000, 16000, 48000, 0)):
        message.sample_rate, message.timestamp.sec = rate, 7 + k
        if rate:
            rates.append(source.convert(message, T0).rate_hz)
    assert rates == [16000.0, 16000.0, 48000.0]
    with pytest.raises(InputError, match=r"rate of 1000 to 384000 Hz .* got 0 Hz"):
        source.convert(message, T0)


def test_any_other_type_by_its_field():
    message = Int32MultiArray(data=array.array("i", [2**30]))
    kind = "std_msgs/msg/Int32MultiArray"
    assert convert(message, type=kind, field="data").values.tolist() == [[0.5]]


def mp3_frames(count):
    # MPEG-1 layer III, 128 kbit/s, 44.1 kHz: 417 bytes a frame.
    return (b"\xff\xfb\x90\x00" + bytes(413)) * count


def adts_frames(count, length=200):
    head = bytes([0xFF, 0xF1, 0x50, 0x80 | length >> 11, length >> 3 & 255, (length & 7) << 5, 0])
    return (head + bytes(length - 7)) * count


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"ID3\4\0" + bytes(100), "MP3 with ID3"),
        (mp3_frames(1), "MP3"),
        (mp3_frames(3)[:-100], "MP3"),
        (b"OggS" + bytes(60), "Ogg"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(60), "a WAV file with its header"),
        (b"fLaC" + bytes(60), "FLAC"),
        (b"\x1a\x45\xdf\xa3" + bytes(60), "WebM"),
        (b"\0\0\0\x20ftypM4A " + bytes(60), "MP4"),
        (adts_frames(1), "AAC"),
        (adts_frames(3)[:-50], "AAC"),
    ],
)
def test_encoded_audio_is_refused_by_name(data, kind):
    message = UInt8MultiArray(data=array.array("B", data))
    with pytest.raises(
        InputError, match=f"must be PCM, got {kind}.*publish uncompressed"
    ) as error:
        convert(message, type="std_msgs/msg/UInt8MultiArray")
    assert error.value.reason == "encoded"


def test_samples_that_look_like_a_sync_word_are_audio():
    loud = np.full(320, -1025, "<i2")  # bytes FF FB throughout, as a clipped or held signal
    loud[1] = 0x0090
    message = UInt8MultiArray(data=array.array("B", loud.tobytes()))
    source = {"type": "std_msgs/msg/UInt8MultiArray"}
    rng = np.random.default_rng(1)
    assert len(convert(message, **source).values) == 320
    for _ in range(2000):
        noise = b"\xff\xfb" + rng.bytes(638)
        convert(UInt8MultiArray(data=array.array("B", noise)), **source)


def floats(*values):
    return Float32MultiArray(data=array.array("f", values))


@pytest.mark.parametrize(
    ("message", "parameters", "reason", "text"),
    [
        (Int16MultiArray(), {}, "empty", "at least one sample, got none"),
        (
            Int16MultiArray(data=array.array("h", [1, 2, 3])),
            {"channels": 2},
            "length",
            "whole samples of 2 channels, got 3 values; correct audio.channels",
        ),
        (floats(0.0, float("nan")), {}, "not_finite", "finite, got NaN or Inf"),
        (floats(0.0, float("-inf")), {}, "not_finite", "finite, got NaN or Inf"),
        (floats(0.0, 12000.0), {}, "range", "-1 to 1, got a peak of 12000; divide .* 32768"),
        (
            UInt8MultiArray(data=array.array("B", bytes(5))),
            {},
            "length",
            "s16le audio must hold a multiple of 2 bytes, got 5",
        ),
        (
            UInt8MultiArray(data=array.array("B", bytes(17 * 2**20))),
            {},
            "too_large",
            "at most 16 MiB a message, got 17.0 MiB",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused(message, parameters, reason, text):
    kind = f"std_msgs/msg/{type(message).__name__}"
    with pytest.raises(InputError, match=text) as error:
        convert(message, type=kind, **parameters)
    assert error.value.reason == reason


def test_overshoot_is_no_error():
    assert convert(floats(1.5, -2.0), type="std_msgs/msg/Float32MultiArray").values[1, 0] == -2.0


def test_a_layout_is_held_against_the_parameters():
    message = Int16MultiArray(data=array.array("h", range(12)))
    message.layout.dim = [
        MultiArrayDimension(label="channels", size=2, stride=12),
        MultiArrayDimension(label="samples", size=6, stride=6),
    ]
    chunk = convert(message, channels=2)  # planar
    np.testing.assert_allclose(chunk.values[:, 0] * 32768, np.arange(6) + 3.0)
    with pytest.raises(InputError, match=r"audio.channels \(1\) must equal the layout's, got 2"):
        convert(message)
    message.layout.data_offset = 12
    with pytest.raises(InputError, match="must describe the 0 values"):
        convert(message, channels=2)


def test_unknown_types_are_a_configuration_error():
    with pytest.raises(ConfigError, match=r"install\s+ros-\$ROS_DISTRO-audio-common-msgs"):
        adapter(type="audio_common_msgs/msg/AudioData")
    with pytest.raises(ConfigError, match="must name a message of std_msgs, got 'Nonsense'"):
        adapter(type="std_msgs/msg/Nonsense")
    with pytest.raises(ConfigError, match="must read package/msg/Name, got 'rm -rf'"):
        adapter(type="rm -rf")
    with pytest.raises(ConfigError, match=r"name the field of its samples in audio.field"):
        adapter(type="geometry_msgs/msg/Wrench")
    with pytest.raises(ConfigError, match=r"must be a field of Int16MultiArray, got 'chunk.data'"):
        adapter(field="chunk.data")
