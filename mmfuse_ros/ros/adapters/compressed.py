"""sensor_msgs/CompressedImage: JPEG and PNG by their first bytes, bounded before decoding."""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mmfuse_ros.config import CameraConfig
from mmfuse_ros.errors import InputError
from mmfuse_ros.ros.adapters.images import (
    MAX_IMAGE_BYTES,
    Image,
    check_extent,
    convert_colour,
    frame_stamp,
)
from mmfuse_ros.ros.adapters.messages import as_array, message_class
from mmfuse_ros.samples import Frame

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"

# What one byte can stand for at the very most: deflate packs 1032 : 1, and a JPEG spends at least
# a bit on a block of 64 pixels. More is a decompression bomb.
_DEFLATE_RATIO = 1032
_JPEG_PIXELS_PER_BYTE = 1024

# Channels by PNG colour type.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# Chunks of 8 KiB, as libpng writes them, up to the largest message.
_MAX_CHUNKS = 32768

# Encoders write about ten scans for a progressive JPEG; thousands would be decoded for minutes.
_MAX_SCANS = 32
_MAX_SEGMENTS = 1024

# Start of frame, without DHT (C4), JPG (C8) and DAC (CC).
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class CompressedImageAdapter:
    """Adapter of sensor_msgs/CompressedImage."""

    topic_suffix = "/compressed"

    def __init__(self, config: CameraConfig) -> None:
        self.message_type = message_class("sensor_msgs/msg/CompressedImage", "type")
        self._stamp = frame_stamp(config)

    def convert(self, message: Any, arrival_ns: int) -> Frame:
        """Check a message's header bytes and return it as an undecoded frame."""
        if "compressedDepth" in message.format:
            raise InputError(
                f"format must be JPEG or PNG colour, got {message.format[:60]!r}; depth images "
                "are no input, subscribe to the colour camera",
                "encoding",
            )
        data = as_array(message.data, np.uint8)
        width, height = image_extent(data)
        decode = partial(_decode, data, width, height)
        stamp_ns = self._stamp(message, arrival_ns)
        return Frame(stamp_ns, str(message.header.frame_id), decode, data.nbytes)


def image_extent(data: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Return width and height of a JPEG or PNG from its header bytes, (bytes,) uint8.

    Raises:
        InputError: neither of the two, cut off, or larger than what is decoded.
    """
    if data.size > MAX_IMAGE_BYTES:
        raise InputError(
            f"data must be at most {MAX_IMAGE_BYTES >> 20} MiB, got {data.size / 2**20:.0f} MiB",
            "too_large",
        )
    raw = data.tobytes()
    if raw.startswith(_PNG):
        width, height, least = _png_extent(raw)
    elif raw.startswith(_JPEG):
        width, height, least = _jpeg_extent(raw)
    else:
        raise InputError(
            f"data must begin as a JPEG or PNG does, got bytes {raw[:8].hex(' ') or '(none)'}; "
            "publish jpeg or png, or use type raw",
            "encoding",
        )
    check_extent(width, height)
    if least > len(raw):
        raise InputError(
            f"an image must fit its bytes, got {width} x {height} in {len(raw)} bytes; "
            "the header is corrupt or a decompression bomb",
            "bomb",
        )
    return width, height


def _cut_off(kind: str) -> InputError:
    return InputError(f"a {kind} must be whole, got one that is cut off or corrupt", "truncated")


def _png_extent(raw: bytes) -> tuple[int, int, int]:
    """Return width, height, and the fewest bytes that such a PNG can have.

    Every chunk must fit into the bytes there are: decoders allocate what a chunk claims.
    """
    if raw[8:16] != b"\0\0\0\x0dIHDR" or len(raw) < 33:
        raise _cut_off("PNG")
    width, height = int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
    depth, channels = raw[24], _PNG_CHANNELS.get(raw[25], 0)
    if depth not in (1, 2, 4, 8, 16) or not channels:
        raise _cut_off("PNG")
    at = 33
    for _ in range(_MAX_CHUNKS):
        kind = raw[at + 4 : at + 8]
        at += 12 + int.from_bytes(raw[at : at + 4], "big")
        if at > len(raw) or not kind:
            raise _cut_off("PNG")
        if kind in (b"acTL", b"fcTL", b"fdAT"):
            raise InputError("a PNG must be one picture, got an animation", "encoding")
        if kind == b"IEND":
            row = 1 + (width * depth * channels + 7) // 8
            return width, height, row * height // _DEFLATE_RATIO
    raise _cut_off("PNG")


def _jpeg_extent(raw: bytes) -> tuple[int, int, int]:
    """Return width, height, and the fewest bytes that such a JPEG can have."""
    extent = None
    at = 2
    for _ in range(_MAX_SEGMENTS):
        while raw[at : at + 2] == b"\xff\xff":
            at += 1  # fill bytes
        marker = raw[at + 1] if at + 4 <= len(raw) and raw[at] == 0xFF else -1
        length = int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker < 0xC0 or length < 2:
            raise _cut_off("JPEG")
        if marker == 0xDA:
            break
        if marker in _SOF:
            if at + 9 > len(raw):
                raise _cut_off("JPEG")
            height = int.from_bytes(raw[at + 5 : at + 7], "big")
            extent = int.from_bytes(raw[at + 7 : at + 9], "big"), height
        at += 2 + length
    # The end marker cannot occur within the coded picture; cameras may pad behind it.
    if extent is None or raw.rfind(b"\xff\xd9") < at:
        raise _cut_off("JPEG")
    if raw.count(b"\xff\xda", at) > _MAX_SCANS:
        raise InputError(
            f"a JPEG must hold at most {_MAX_SCANS} scans, got more; encode it as baseline", "bomb"
        )
    return *extent, extent[0] * extent[1] // _JPEG_PIXELS_PER_BYTE


def _decode(data: npt.NDArray[np.uint8], width: int, height: int) -> Image:
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        picture = None
    if picture is None or picture.shape != (height, width, 3):
        raise InputError(
            f"an image of {width} x {height} must decode, got "
            f"{'nothing' if picture is None else picture.shape}; its data is corrupt",
            "decode",
        )
    return convert_colour(np.asarray(picture, np.uint8), cv2.COLOR_BGR2RGB)
