"""Raw and compressed images, made with the real message classes."""

import array
import sys
import types

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from mmfuse_ros.config import Config
from mmfuse_ros.errors import InputError
from mmfuse_ros.ros.adapters import make_adapter
from mmfuse_ros.samples import Modality

WIDTH, HEIGHT = 64, 48


def raw_adapter(**parameters):
    return make_adapter(Modality.CAMERA_1, Config.from_flat(parameters))


def compressed_adapter():
    return raw_adapter(**{"camera_1.type": "compressed"})


def picture():
    """A smooth picture whose four quarters differ in every channel, (H, W, 3) RGB."""
    colours = np.array([[[220, 40, 60], [30, 200, 90]], [[50, 70, 210], [190, 180, 20]]], np.uint8)
    return np.repeat(np.repeat(colours, HEIGHT // 2, axis=0), WIDTH // 2, axis=1)


def message(data, encoding, width=WIDTH, height=HEIGHT, step=None, big=0, pad=0):
    """An Image of rows of bytes, (rows, bytes), each padded by `pad` bytes."""
    rows = np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1)
    rows = np.pad(rows, ((0, 0), (0, pad)), constant_values=0xAA)
    out = Image(encoding=encoding, width=width, height=height, is_bigendian=big)
    out.step = rows.shape[1] if step is None else step
    out.data = array.array("B", rows.tobytes())
    out.header.stamp.sec, out.header.stamp.nanosec = 1700, 250
    out.header.frame_id = "cam"
    return out


def decode(msg, adapter=None):
    result = (adapter or raw_adapter()).convert(msg, 5).decode()
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    return result


def mosaic(rgb, pattern):
    """The sensor's view of a picture through a colour filter such as `rggb`."""
    out = np.empty(rgb.shape[:2], rgb.dtype)
    for k, colour in enumerate(pattern):
        out[k // 2 :: 2, k % 2 :: 2] = rgb[k // 2 :: 2, k % 2 :: 2, "rgb".index(colour)]
    return out


def to_yuv(rgb):
    """BT.601 with video range, by its definition, as floats (H, W, 3)."""
    matrix = np.array(
        [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
    )
    return rgb / 255.0 @ matrix.T + [16.0, 128.0, 128.0]


RGB = picture()
GREY = RGB[..., 1].copy()
ALPHA = np.full((HEIGHT, WIDTH, 1), 77, np.uint8)

LOSSLESS = {
    "rgb8": RGB,
    "bgr8": RGB[..., ::-1],
    "8UC3": RGB[..., ::-1],
    "rgba8": np.concatenate([RGB, ALPHA], axis=2),
    "bgra8": np.concatenate([RGB[..., ::-1], ALPHA], axis=2),
    "8UC4": np.concatenate([RGB[..., ::-1], ALPHA], axis=2),
}


@pytest.mark.parametrize("pad", [0, 13])
@pytest.mark.parametrize("encoding", LOSSLESS)
def test_colour_is_exact(encoding, pad):
    np.testing.assert_array_equal(decode(message(LOSSLESS[encoding], encoding, pad=pad)), RGB)


@pytest.mark.parametrize("pad", [0, 6])
@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_is_repeated(encoding, pad):
    expected = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(message(GREY, encoding, pad=pad)), expected)


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_sixteen_bits_keep_the_upper_byte(encoding, big):
    wide = (GREY.astype(np.uint16) << 8 | 0x5B).astype(">u2" if big else "<u2")
    expected = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(message(wide, encoding, big=big, pad=10)), expected)


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16"])
def test_sixteen_bit_colour(encoding, big):
    order = RGB if encoding == "rgb16" else RGB[..., ::-1]
    wide = (order.astype(np.uint16) << 8 | 0x5B).astype(">u2" if big else "<u2")
    np.testing.assert_array_equal(decode(message(wide, encoding, big=big, pad=4)), RGB)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_give_the_colours_back(pattern, bits):
    raw = mosaic(RGB, pattern)
    if bits == 16:
        raw = raw.astype("<u2") << 8
    result = decode(message(raw, f"bayer_{pattern}{bits}", pad=2))
    for rows in (slice(4, 20), slice(28, 44)):  # inside each quarter
        for columns in (slice(4, 28), slice(36, 60)):
            np.testing.assert_array_equal(result[rows, columns], RGB[rows, columns])


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("yuv422", "UYVY"), ("uyvy", "UYVY"), ("yuv422_yuy2", "YUYV"), ("yuyv", "YUYV")],
)
def test_yuv422_in_both_orders(encoding, order):
    yuv = to_yuv(RGB)
    places = {"U": yuv[:, ::2, 1], "V": yuv[:, ::2, 2]}
    luma = iter([yuv[:, ::2, 0], yuv[:, 1::2, 0]])
    packed = np.stack([next(luma) if c == "Y" else places[c] for c in order], axis=2)
    result = decode(message(packed.round().astype(np.uint8), encoding, pad=8))
    assert np.abs(result.astype(int) - RGB).max() <= 3


@pytest.mark.parametrize(("encoding", "order"), [("nv12", (1, 2)), ("nv21", (2, 1))])
def test_nv12_has_its_chroma_below(encoding, order):
    yuv = to_yuv(RGB)
    chroma = yuv[::2, ::2, order].reshape(HEIGHT // 2, WIDTH)
    planes = np.concatenate([yuv[..., 0], chroma]).round().astype(np.uint8)
    result = decode(message(planes, encoding, pad=16))
    assert np.abs(result.astype(int) - RGB).max() <= 3


@pytest.mark.parametrize(
    "wrap", [bytes, bytearray, memoryview, list, lambda b: np.frombuffer(b, np.uint8)]
)
def test_data_of_any_type_is_read(wrap):
    """Distributions differ in the type of `data`; a plain class stands for the others."""
    msg = message(RGB, "bgr8")
    other = types.SimpleNamespace(
        **{name: getattr(msg, name) for name in msg.get_fields_and_field_types()}
    )
    other.data = wrap(msg.data.tobytes())
    np.testing.assert_array_equal(decode(other), RGB[..., ::-1])


def test_stamps_come_from_the_header_or_the_arrival():
    msg = message(RGB, "rgb8")
    frame = raw_adapter().convert(msg, 99)
    assert (frame.stamp_ns, frame.frame_id) == (1700 * 10**9 + 250, "cam")
    late = raw_adapter(**{"camera_1.offset_s": -0.1}).convert(msg, 99)
    assert late.stamp_ns == 1700 * 10**9 + 250 - 10**8
    assert raw_adapter(**{"camera_1.stamps": "arrival"}).convert(msg, 99).stamp_ns == 99
    msg.header.stamp.sec = msg.header.stamp.nanosec = 0
    assert raw_adapter(**{"camera_1.offset_s": 1.0}).convert(msg, 99).stamp_ns == 0


def test_a_frame_of_a_message_that_is_contiguous_rgb_is_not_copied():
    msg = message(RGB, "rgb8")
    assert np.shares_memory(decode(msg), np.frombuffer(msg.data, np.uint8))


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        ({"encoding": "32FC1"}, "encoding", "must be one of rgb8, bgr8.*got '32FC1'"),
        ({"step": 191}, "step", r"hold 64 pixels of rgb8 \(192 bytes\), got 191"),
        ({"step": 0}, "step", "got 0; correct the driver's step"),
        ({"height": 49}, "truncated", "49 rows of 192 bytes, got 9216"),
        ({"height": 0}, "extent", "1 to 8192 pixels wide and high, got 64 x 0"),
        ({"width": 0, "step": 0}, "extent", "got 0 x 48"),
        ({"width": 2**32 - 1}, "extent", "got 4294967295 x 48"),
        ({"encoding": "nv12", "width": 63}, "extent", "nv12 needs an even width and height"),
        ({"encoding": "mono16", "step": 193}, "step", "got 193"),
    ],
)
def test_what_breaks_a_rule_is_refused_before_decoding(change, reason, text):
    msg = message(RGB, "rgb8")
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(InputError, match=text) as error:
        raw_adapter().convert(msg, 5)
    assert error.value.reason == reason


def test_other_encodings_go_through_cv_bridge_where_it_is(monkeypatch):
    """cv_bridge is not on PyPI; this stands in for its one method that is used."""

    class CvBridge:
        def imgmsg_to_cv2(self, msg, desired_encoding):
            assert desired_encoding == "rgb8"
            if msg.encoding == "nv24":
                return RGB
            raise RuntimeError("Unrecognized image encoding")

    module = types.ModuleType("cv_bridge")
    module.__spec__ = types.SimpleNamespace()
    module.CvBridge = CvBridge
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    np.testing.assert_array_equal(decode(message(RGB, "nv24")), RGB)
    with pytest.raises(InputError, match="cv_bridge must be able to read encoding 'odd'"):
        decode(message(RGB, "odd"))


def compressed(kind, image=RGB, quality=(), name=None):
    done, data = cv2.imencode(kind, image[..., ::-1], list(quality))
    assert done
    msg = CompressedImage(format=name or f"rgb8; {kind[1:]} compressed bgr8")
    msg.data = array.array("B", data.tobytes())
    return msg


def test_png_is_exact_and_jpeg_is_close():
    adapter = compressed_adapter()
    assert adapter.topic_suffix == "/compressed"
    np.testing.assert_array_equal(decode(compressed(".png"), adapter), RGB)
    near = decode(compressed(".jpg", quality=(cv2.IMWRITE_JPEG_QUALITY, 98)), adapter)
    assert np.abs(near.astype(int) - RGB)[4:20, 4:28].max() <= 4


def test_the_bytes_decide_not_the_format_field():
    np.testing.assert_array_equal(
        decode(compressed(".png", name="jpeg"), compressed_adapter()), RGB
    )


def test_progressive_and_grey_and_sixteen_bit_pictures_decode():
    adapter = compressed_adapter()
    progressive = compressed(".jpg", quality=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    assert decode(progressive, adapter).shape == RGB.shape
    wide = CompressedImage(format="mono16; png compressed")
    wide.data = array.array("B", cv2.imencode(".png", GREY.astype(np.uint16) << 8)[1].tobytes())
    np.testing.assert_array_equal(decode(wide, adapter), np.repeat(GREY[..., None], 3, axis=2))


def test_cameras_may_pad_a_jpeg():
    msg = compressed(".jpg")
    msg.data = array.array("B", msg.data.tobytes() + bytes(500))
    assert decode(msg, compressed_adapter()).shape == RGB.shape


def jpeg_with(data, width, height):
    """The bytes of a JPEG that claims other dimensions."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


def png_with(data, width, height):
    return data[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:]


@pytest.mark.parametrize(
    ("spoil", "reason", "text"),
    [
        (lambda j, p: b"", "encoding", r"begin as a JPEG or PNG does, got bytes \(none\)"),
        (lambda j, p: b"GIF89a" + j, "encoding", "got bytes 47 49 46 38 39 61"),
        (lambda j, p: j[: len(j) // 2], "truncated", "a JPEG must be whole"),
        (lambda j, p: j[:3], "truncated", "a JPEG must be whole"),
        (lambda j, p: j[:2] + b"\xff\xe0\0\2" * 5000 + j[2:], "truncated", "cut off or corrupt"),
        (lambda j, p: p[: len(p) // 2], "truncated", "a PNG must be whole"),
        (lambda j, p: p[:12], "truncated", "a PNG must be whole"),
        (lambda j, p: jpeg_with(j, 65535, 65535), "extent", "got 65535 x 65535"),
        (lambda j, p: jpeg_with(j, 8000, 8000), "bomb", "8000 x 8000 in [0-9]+ bytes"),
        (lambda j, p: jpeg_with(j, 0, 48), "extent", "got 0 x 48"),
        (lambda j, p: png_with(p, 2**31 - 1, 2**31 - 1), "extent", "got 2147483647"),
        (lambda j, p: png_with(p, 8000, 8000), "bomb", "decompression bomb"),
        (lambda j, p: j[:-2] + b"\xff\xda\0\2" * 100 + j[-2:], "bomb", "at most 32 scans"),
    ],
)
def test_broken_compressed_images_are_refused_before_decoding(spoil, reason, text):
    jpeg, png = (compressed(kind).data.tobytes() for kind in (".jpg", ".png"))
    msg = CompressedImage(format="jpeg", data=array.array("B", spoil(jpeg, png)))
    with pytest.raises(InputError, match=text) as error:
        compressed_adapter().convert(msg, 5)
    assert error.value.reason == reason


def test_depth_is_refused_with_a_remedy():
    msg = compressed(".png", name="16UC1; compressedDepth png")
    with pytest.raises(InputError, match="subscribe to the colour camera"):
        compressed_adapter().convert(msg, 5)


def test_a_picture_that_is_not_what_its_header_says_fails_in_the_worker():
    png = compressed(".png").data.tobytes()
    start = png.index(b"IDAT") + 6
    spoilt = png[:start] + bytes(len(png) - start - 16) + png[-16:]
    frame = compressed_adapter().convert(CompressedImage(data=array.array("B", spoilt)), 5)
    with pytest.raises(InputError, match="an image of 64 x 48 must decode") as error:
        frame.decode()
    assert error.value.reason == "decode"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_size_padding_and_byte_order_is_read_exactly(data):
    """Against the definition of each encoding, pixel by pixel."""
    width, height = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    encoding = data.draw(st.sampled_from(["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16"]))
    big, pad = data.draw(st.integers(0, 1)), 2 * data.draw(st.integers(0, 9))
    channels = {"rgb8": 3, "bgr8": 3, "mono8": 1, "mono16": 1}.get(encoding, 4)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = (">u2" if big else "<u2") if encoding == "mono16" else "u1"
    pixels = rng.integers(0, 2**16, (height, width, channels)).astype(kind)
    result = decode(message(pixels, encoding, width, height, big=big, pad=pad))
    assert result.shape == (height, width, 3)
    for y in range(height):
        for x in range(width):
            p = [int(v) for v in pixels[y, x]]
            expected = {
                "rgb8": p[:3],
                "bgr8": p[2::-1],
                "rgba8": p[:3],
                "bgra8": p[2::-1],
                "mono8": p * 3,
                "mono16": [p[0] // 256] * 3,
            }[encoding]
            assert result[y, x].tolist() == expected
