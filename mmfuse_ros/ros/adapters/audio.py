"""PCM audio of the message types in use, mixed down to one channel of float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.config import AudioConfig
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.ros.adapters.layout import samples_of
from mmfuse_ros.ros.adapters.messages import (
    as_array,
    check_size,
    field_reader,
    message_class,
)
from mmfuse_ros.ros.adapters.stamps import SignalStamps
from mmfuse_ros.samples import Chunk

Array = npt.NDArray[Any]

# Full scale is 1. Mixing and resampling may overshoot it; beyond 18 dB the samples are integers
# in a float's clothes.
_FLOAT_LIMIT = 8.0

_RATES_HZ = (1000.0, 384000.0)
_MAX_CHANNELS = 64

# PortAudio's PaSampleFormat, as audio_common_msgs/AudioInfo carries it (github.com/mgonzs13).
_PORTAUDIO = {
    1: ("float32_data", "<f4"),
    2: ("int32_data", "<i4"),
    4: ("int24_data", "<i4"),
    8: ("int16_data", "<i2"),
    16: ("int8_data", "i1"),
    32: ("uint8_data", "u1"),
}

# Layer III bit rates (kbit/s) and sampling rates of MPEG-1, and of MPEG-2 and 2.5.
_MP3_KBPS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MP3_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}

# Returns interleaved samples, flat or (samples, channels), their rate and channels.
Reader = Callable[[Any], "tuple[Array, float, int]"]


class AudioAdapter:
    """Adapter of audio messages, told apart by their fields.

    Integer samples are scaled to full scale 1; rate and channels come from the message where it
    has them, else from `audio.rate_hz` and `audio.channels`.
    """

    topic_suffix = ""

    def __init__(self, config: AudioConfig) -> None:
        self._config = config
        self.message_type = message_class(config.type, "audio.type")
        self._read = self._reader()
        self._stamps = SignalStamps(
            self.message_type, config.stamps, config.offset_s, config.rate_hz, "audio.rate_hz"
        )

    def convert(self, message: Any, arrival_ns: int) -> Chunk:
        """Return the message's samples as one channel."""
        samples, rate_hz, channels = self._read(message)
        if not (_RATES_HZ[0] <= rate_hz <= _RATES_HZ[1] and 1 <= channels <= _MAX_CHANNELS):
            raise InputError(
                f"audio must have a rate of {_RATES_HZ[0]:g} to {_RATES_HZ[1]:g} Hz and 1 to "
                f"{_MAX_CHANNELS} channels, got {rate_hz:g} Hz and {channels}; check the driver",
                "format",
            )
        if not samples.size or samples.size % channels:
            raise InputError(
                f"audio must hold whole samples of {channels} channels, got {samples.size} "
                "values; correct audio.channels",
                "length",
            )
        mono = samples.reshape(-1, channels)
        if channels > 1:
            mono = mono.mean(axis=1, keepdims=True, dtype=np.float32)
        stamp_ns = self._stamps.first_ns(message, len(mono), rate_hz, arrival_ns)
        return Chunk(stamp_ns, mono, rate_hz, self._stamps.frame_id(message))

    def _reader(self) -> Reader:
        config, example = self._config, self.message_type()
        if config.field:
            read = field_reader(config.field, self.message_type, "audio.field")
            return lambda message: self._from_values(read(message), None)
        inner = getattr(example, "audio", example)
        if hasattr(inner, "audio_data") and hasattr(inner, "info"):
            return lambda message: _from_portaudio(getattr(message, "audio", message))
        if hasattr(example, "number_of_channels") and hasattr(example, "sample_rate"):
            return _from_foxglove
        if hasattr(inner, "data") and inner is not example:
            return lambda message: self._from_values(message.audio.data, None)
        if hasattr(example, "data"):
            return lambda message: self._from_values(
                message.data, getattr(message, "layout", None)
            )
        raise ConfigError(
            f"audio.type must be a known audio message, got {config.type}; "
            "name the field of its samples in audio.field"
        )

    def _from_values(self, data: Any, layout: Any) -> tuple[Array, float, int]:
        config = self._config
        array = as_array(data)
        if array.dtype.kind == "u" and array.dtype.itemsize == 1:
            samples = decode_pcm(array, config.encoding)
        else:
            samples = full_scale(array)
        channels = config.channels
        if layout is not None and (layout.dim or layout.data_offset):
            samples = samples_of(samples, layout, channels, "audio")
        return samples, config.rate_hz, channels


def _from_portaudio(audio: Any) -> tuple[Array, float, int]:
    info = audio.info
    name, dtype = _PORTAUDIO.get(int(info.format), ("", ""))
    data = getattr(audio.audio_data, name, None) if name else None
    if data is None:
        raise InputError(
            "info.format must be a PortAudio sample format (1 float32, 2 int32, 8 int16, 16 int8, "
            f"32 uint8), got {info.format}; set the driver's format",
            "encoding",
        )
    array = as_array(data, dtype)
    if name == "uint8_data":
        samples = decode_pcm(array, "u8")
    elif name == "int24_data":
        check_size(array.size, 4, "audio")
        samples = array.astype(np.float32) / np.float32(2**23)
    else:
        samples = full_scale(array)
    return samples, float(info.rate), int(info.channels)


def _from_foxglove(message: Any) -> tuple[Array, float, int]:
    if message.format not in ("pcm-s16", "pcm-s16le"):
        raise InputError(
            f"format must be 'pcm-s16', got {message.format[:40]!r}; publish uncompressed audio",
            "encoding",
        )
    samples = decode_pcm(as_array(message.data, np.uint8), "s16le")
    return samples, float(message.sample_rate), int(message.number_of_channels)


def full_scale(array: Array) -> Array:
    """Return samples as float32 of full scale 1; integers by the range of their type.

    Raises:
        InputError: empty, too large, not finite, or floats far beyond full scale.
    """
    check_size(array.size, array.itemsize, "audio")
    if array.dtype.kind in "iu":
        bits = 8 * array.itemsize
        middle = 2 ** (bits - 1) if array.dtype.kind == "u" else 0
        wide = array.astype(np.float64 if bits > 16 else np.float32)
        return ((wide - middle) / 2 ** (bits - 1)).astype(np.float32)
    with np.errstate(over="ignore"):
        samples = array.astype(np.float32, copy=False)
    peak = float(np.abs(samples).max())
    if not peak <= _FLOAT_LIMIT:
        if not np.isfinite(peak):
            raise InputError(
                "audio must be finite, got NaN or Inf; check the driver", "not_finite"
            )
        raise InputError(
            f"float audio must lie within -1 to 1, got a peak of {peak:g}; divide integer samples "
            "by full scale, such as 32768",
            "range",
        )
    return samples


def decode_pcm(data: npt.NDArray[np.uint8], encoding: str) -> Array:
    """Return PCM bytes, (bytes,) uint8, as float32 of full scale 1.

    Args:
        encoding: s16le, s16be, s24le, s32le, f32le or u8.

    Raises:
        InputError: an encoded format, a broken sample, or samples out of range.
    """
    check_size(data.size, 1, "audio")
    kind = _container(data[:4096].tobytes(), data.size)
    if kind:
        raise InputError(
            f"audio must be PCM, got {kind}; publish uncompressed samples "
            "(audio_capture: format:=wave)",
            "encoded",
        )
    width = {"u8": 1, "s16le": 2, "s16be": 2, "s24le": 3}.get(encoding, 4)
    if data.size % width:
        raise InputError(
            f"{encoding} audio must hold a multiple of {width} bytes, got {data.size}; "
            "correct audio.encoding",
            "length",
        )
    if encoding == "s24le":
        padded = np.zeros((data.size // 3, 4), np.uint8)
        padded[:, 1:] = data.reshape(-1, 3)
        return full_scale(padded.view("<i4").reshape(-1))
    kinds = {"u8": "u1", "s16le": "<i2", "s16be": ">i2", "s32le": "<i4", "f32le": "<f4"}
    return full_scale(np.ascontiguousarray(data).view(kinds[encoding]))


def _container(head: bytes, size: int) -> str:
    """Return the name of the encoded format that bytes begin as, "" for none."""
    if head.startswith(b"ID3") and head[3:4] in (b"\2", b"\3", b"\4"):
        return "MP3 with ID3 tags"
    for magic, kind in (
        (b"OggS", "Ogg (Opus or Vorbis)"),
        (b"fLaC", "FLAC"),
        (b"\x1a\x45\xdf\xa3", "WebM"),
    ):
        if head.startswith(magic):
            return kind
    if head[:4] in (b"RIFF", b"RIFX") and head[8:12] == b"WAVE":
        return "a WAV file with its header"
    if head[4:8] == b"ftyp":
        return "MP4 (AAC)"
    # Samples may look like a sync word by chance; not so where the next frame begins, too.
    for length, kind in ((_mp3_frame(head), "MP3"), (_adts_frame(head), "AAC (ADTS)")):
        if length and (length == size or head[length : length + 2] == head[:2]):
            return kind
    return ""


def _mp3_frame(head: bytes) -> int:
    """Return the length of the MPEG layer III frame that bytes begin with, 0 for none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, rate, hz = (head[1] >> 3) & 3, head[2] >> 4, (head[2] >> 2) & 3
    if version == 1 or rate in (0, 15) or hz == 3:
        return 0
    kbps = _MP3_KBPS[0 if version == 3 else 1][rate]
    return (144 if version == 3 else 72) * kbps * 1000 // _MP3_HZ[version][hz] + (head[2] >> 1 & 1)


def _adts_frame(head: bytes) -> int:
    """Return the length of the AAC frame that bytes begin with, 0 for none."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length >= 7 else 0
