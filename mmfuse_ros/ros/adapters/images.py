"""sensor_msgs/Image: checked when it arrives, decoded when a window needs it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mmfuse_ros.config import CameraConfig
from mmfuse_ros.errors import InputError
from mmfuse_ros.ros.adapters.messages import as_array, header_ns, message_class
from mmfuse_ros.samples import NS_PER_S, Frame

Image = npt.NDArray[np.uint8]

# The largest picture that is decoded: 192 MiB of RGB.
MAX_SIDE = 8192
MAX_IMAGE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Encoding:
    """How a pixel is stored and which OpenCV conversion leads to RGB.

    Attributes:
        pixel_bytes: bytes of one pixel in a row.
        conversion: the OpenCV code, None where the bytes are RGB already.
        channels: values of one pixel.
        dtype: u1 or u2; the upper byte of 16 bits is kept.
        rows: rows of data by row of picture (planar chroma follows the luma).
        even: width (and height with planar chroma) must be even.
    """

    pixel_bytes: int
    conversion: int | None
    channels: int
    dtype: str = "u1"
    rows: float = 1.0
    even: bool = False


def _encodings() -> dict[str, _Encoding]:
    grey, bgr, bgra = cv2.COLOR_GRAY2RGB, cv2.COLOR_BGR2RGB, cv2.COLOR_BGRA2RGB
    table = {
        "rgb8": _Encoding(3, None, 3),
        "bgr8": _Encoding(3, bgr, 3),
        "8UC3": _Encoding(3, bgr, 3),  # OpenCV's own order
        "rgba8": _Encoding(4, cv2.COLOR_RGBA2RGB, 4),
        "bgra8": _Encoding(4, bgra, 4),
        "8UC4": _Encoding(4, bgra, 4),
        "rgb16": _Encoding(6, None, 3, "u2"),
        "bgr16": _Encoding(6, bgr, 3, "u2"),
        "mono8": _Encoding(1, grey, 1),
        "8UC1": _Encoding(1, grey, 1),
        "mono16": _Encoding(2, grey, 1, "u2"),
        "16UC1": _Encoding(2, grey, 1, "u2"),
        "yuv422": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY, 2, even=True),
        "uyvy": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY, 2, even=True),
        "yuv422_yuy2": _Encoding(2, cv2.COLOR_YUV2RGB_YUY2, 2, even=True),
        "yuyv": _Encoding(2, cv2.COLOR_YUV2RGB_YUY2, 2, even=True),
        "nv12": _Encoding(1, cv2.COLOR_YUV2RGB_NV12, 1, rows=1.5, even=True),
        "nv21": _Encoding(1, cv2.COLOR_YUV2RGB_NV21, 1, rows=1.5, even=True),
    }
    # ROS names a mosaic by its first row from the left, OpenCV by the second row's second and
    # third pixels: rggb is BG.
    for pattern, code in {
        "rggb": cv2.COLOR_BayerBG2RGB,
        "bggr": cv2.COLOR_BayerRG2RGB,
        "gbrg": cv2.COLOR_BayerGR2RGB,
        "grbg": cv2.COLOR_BayerGB2RGB,
    }.items():
        table[f"bayer_{pattern}8"] = _Encoding(1, code, 1, even=True)
        table[f"bayer_{pattern}16"] = _Encoding(2, code, 1, "u2", even=True)
    return table


_ENCODINGS = _encodings()


class ImageAdapter:
    """Adapter of sensor_msgs/Image.

    Sixteen-bit pictures keep their upper byte. YUV is BT.601 with video range, as OpenCV has it.
    Encodings that are not built in go through cv_bridge where it is installed.
    """

    topic_suffix = ""

    def __init__(self, config: CameraConfig) -> None:
        self.message_type = message_class("sensor_msgs/msg/Image", "type")
        self._stamp = frame_stamp(config)
        self._bridge = importlib.util.find_spec("cv_bridge") is not None

    def convert(self, message: Any, arrival_ns: int) -> Frame:
        """Check a message and return it as an undecoded frame."""
        encoding = _ENCODINGS.get(message.encoding)
        if encoding is not None:
            _check(message, encoding)
            decode: Callable[[], Image] = partial(_decode, message, encoding)
        elif self._bridge:
            check_extent(message.width, message.height)
            decode = partial(_decode_by_cv_bridge, message)
        else:
            raise InputError(
                f"encoding must be one of {', '.join(_ENCODINGS)}, got {message.encoding[:40]!r}; "
                "install cv_bridge for others",
                "encoding",
            )
        stamp_ns = self._stamp(message, arrival_ns)
        return Frame(stamp_ns, str(message.header.frame_id), decode, len(message.data))


def frame_stamp(config: CameraConfig) -> Callable[[Any, int], int]:
    """Return a function from a message and its arrival to the frame's stamp."""
    offset_ns = round(config.offset_s * NS_PER_S)
    by_header = config.stamps == "header"

    def stamp(message: Any, arrival_ns: int) -> int:
        stamp_ns = header_ns(message.header) if by_header else arrival_ns
        # A stamp of zero is unset, and stays recognisable as such.
        return stamp_ns + offset_ns if stamp_ns else 0

    return stamp


def check_extent(width: int, height: int) -> None:
    """Raise InputError where a picture is empty or larger than what is decoded."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise InputError(
            f"an image must be 1 to {MAX_SIDE} pixels wide and high, got {width} x {height}; "
            "check the driver",
            "extent",
        )


def _check(message: Any, encoding: _Encoding) -> None:
    width, height, step, size = message.width, message.height, message.step, len(message.data)
    check_extent(width, height)
    if encoding.even and (width % 2 or height % 2):
        raise InputError(
            f"{message.encoding} needs an even width and height, got {width} x {height}; crop it",
            "extent",
        )
    if step < width * encoding.pixel_bytes or step % np.dtype(encoding.dtype).itemsize:
        raise InputError(
            f"step must hold {width} pixels of {message.encoding} "
            f"({width * encoding.pixel_bytes} bytes), got {step}; correct the driver's step",
            "step",
        )
    rows = int(height * encoding.rows)
    if step * rows > size:
        raise InputError(
            f"data must hold {rows} rows of {step} bytes, got {size}; the message is cut off",
            "truncated",
        )
    if size > MAX_IMAGE_BYTES:
        raise InputError(
            f"data must be at most {MAX_IMAGE_BYTES >> 20} MiB, got {size / 2**20:.0f} MiB",
            "too_large",
        )


def _decode(message: Any, encoding: _Encoding) -> Image:
    width, height, step = message.width, message.height, message.step
    rows = int(height * encoding.rows)
    data: Image = as_array(message.data, np.uint8)[: step * rows].reshape(rows, step)
    data = data[:, : width * encoding.pixel_bytes]
    if encoding.dtype == "u2":
        # Of two bytes the upper one: the second, unless the message is big-endian.
        data = data[:, (0 if message.is_bigendian else 1) :: 2]
    if encoding.channels > 1:
        data = data.reshape(rows, width, encoding.channels)
    data = np.ascontiguousarray(data)
    if encoding.conversion is None:
        return data
    return convert_colour(data, encoding.conversion)


def convert_colour(data: Image, conversion: int) -> Image:
    """Return an OpenCV colour conversion of an image.

    Raises:
        InputError: OpenCV refuses it.
    """
    try:
        return np.asarray(cv2.cvtColor(data, conversion), np.uint8)
    except cv2.error as error:
        text = str(error).strip().splitlines()[-1]
        raise InputError(
            f"an image must be convertible to RGB, got {data.shape}: {text}", "decode"
        ) from None


def _decode_by_cv_bridge(message: Any) -> Image:
    try:
        from cv_bridge import CvBridge

        return np.ascontiguousarray(CvBridge().imgmsg_to_cv2(message, "rgb8"), np.uint8)
    except Exception as error:  # foreign code: its errors are many, and all mean the same here
        raise InputError(
            f"cv_bridge must be able to read encoding {message.encoding[:40]!r}, got "
            f"{type(error).__name__}: {error}; publish rgb8",
            "encoding",
        ) from None
