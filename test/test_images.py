"""Image messages -> RGB, against OpenCV's own conversions."""

from __future__ import annotations

import array
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_ros.images import SUPPORTED_ENCODINGS, _cv_bridge, compressed_to_rgb, fill_image, image_to_rgb

TOPIC = "/cam_high/image"
# What a real cv_bridge made of images of noise; data/images/README.md says which and how.
RECORDED = np.load(Path(__file__).parent / "data" / "images" / "cv_bridge.npz")
RECORDED_KEYS = [name.removesuffix(" message") for name in RECORDED.files if name.count(" ") == 2 and "message" in name]
BYTES_A_PIXEL = {"rgba8": 4, "bgra8": 4, "mono8": 1, "mono16": 2, "rgb16": 6, "bgr16": 6, "nv12": 1}
CONVERSIONS = {
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuyv": cv2.COLOR_YUV2RGB_YUYV,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUYV,
}
YUV = ("yuv422", "uyvy", "yuyv", "yuv422_yuy2")


@dataclass
class Fields:
    """The fields of sensor_msgs/Image, with rclpy's types."""

    height: int = 0
    width: int = 0
    encoding: str = ""
    step: int = 0
    is_bigendian: int = 0
    data: array.array[int] | bytes = field(default_factory=lambda: array.array("B"))


@dataclass
class Compressed:
    format: str
    data: bytes


def pixel_bytes(encoding: str) -> int:
    if encoding in YUV:
        return 2
    return BYTES_A_PIXEL.get(encoding, 1 if encoding.startswith("bayer") else 3)


def image(encoding: str, rows: NDArray[np.uint8], height: int, width: int, padding: int = 0, big: int = 0) -> Fields:
    """A message of these rows of bytes, each followed by padding bytes of 0xAB."""
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB)
    return Fields(height, width, encoding, padded.shape[1], big, array.array("B", padded.tobytes()))


def noise(height: int, row_bytes: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, row_bytes), dtype=np.uint8)


@pytest.mark.parametrize("encoding", sorted(CONVERSIONS))
def test_encoding_is_converted_as_opencv_does(encoding: str) -> None:
    channels = pixel_bytes(encoding)
    rows = noise(6, 8 * channels)
    expected = cv2.cvtColor(rows.reshape(6, 8, channels), CONVERSIONS[encoding])
    np.testing.assert_array_equal(image_to_rgb(image(encoding, rows, 6, 8), TOPIC), expected)


def test_rgb8_is_taken_as_it_is_in_memory_of_its_own() -> None:
    rows = noise(6, 24)
    message = image("rgb8", rows, 6, 8)
    rgb = image_to_rgb(message, TOPIC)
    np.testing.assert_array_equal(rgb, rows.reshape(6, 8, 3))
    message.data = array.array("B", bytes(len(message.data)))
    assert rgb.any()
    assert rgb.flags.writeable


def test_mono8_becomes_three_equal_channels() -> None:
    rows = noise(6, 8)
    np.testing.assert_array_equal(image_to_rgb(image("mono8", rows, 6, 8), TOPIC), np.stack([rows] * 3, axis=-1))


def test_nv12_is_converted_as_opencv_does() -> None:
    rows = noise(9, 8)
    expected = cv2.cvtColor(rows, cv2.COLOR_YUV2RGB_NV12)
    np.testing.assert_array_equal(image_to_rgb(image("nv12", rows, 6, 8, padding=3), TOPIC), expected)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_pattern_gives_back_the_colour_it_was_made_of(pattern: str) -> None:
    colour = {"r": 200, "g": 120, "b": 40}
    cell = np.array([colour[c] for c in pattern], np.uint8).reshape(2, 2)
    rows = np.tile(cell, (4, 4))
    rgb = image_to_rgb(image(f"bayer_{pattern}8", rows, 8, 8), TOPIC)
    assert rgb.shape == (8, 8, 3)
    assert (rgb[2:-2, 2:-2] == (200, 120, 40)).all()


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "mono16"])
def test_sixteen_bits_are_read_in_the_messages_byte_order(encoding: str, big: int) -> None:
    channels = 1 if encoding == "mono16" else 3
    values = np.random.default_rng(1).integers(0, 65536, (4, 5, channels), dtype=np.uint16)
    rows = np.ascontiguousarray(values.astype(">u2" if big else "<u2")).view(np.uint8).reshape(4, -1)
    rgb = image_to_rgb(image(encoding, rows, 4, 5, padding=5, big=big), TOPIC)
    # cv_bridge's scale, as OpenCV computes it
    expected = np.round(values / 257.0).astype(np.uint8)
    expected = np.repeat(expected, 3, axis=-1) if channels == 1 else expected
    np.testing.assert_array_equal(rgb, expected[..., ::-1] if encoding == "bgr16" else expected)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("key", RECORDED_KEYS)
def test_every_pixel_is_what_cv_bridge_made_of_it(key: str, padding: int) -> None:
    encoding, big = key.split()
    rows, expected = RECORDED[f"{key} message"], RECORDED[f"{key} rgb8"]
    # Only 16-bit channels have a byte order; a driver may set the flag whatever it sends.
    for flag in (int(big),) if "16" in encoding else (0, 1):
        message = image(encoding, rows, 6, 8, padding, flag)
        np.testing.assert_array_equal(image_to_rgb(message, TOPIC), expected)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("encoding", ["yuyv", "yuv422_yuy2"])
def test_the_other_order_of_yuv422_is_the_same_picture_with_its_bytes_swapped(encoding: str, padding: int) -> None:
    swapped = RECORDED["yuv422 0 message"].reshape(6, 8, 2)[..., ::-1].reshape(6, 16)
    rgb = image_to_rgb(image(encoding, swapped, 6, 8, padding), TOPIC)
    np.testing.assert_array_equal(rgb, RECORDED["yuv422 0 rgb8"])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_compressed_image_is_what_cv_bridge_made_of_it(suffix: str) -> None:
    message = Compressed("bgr8; jpeg compressed bgr8", RECORDED[f"{suffix} message"].tobytes())
    # JPEG decoders may round differently by a grey level or two; PNG is exact.
    difference = np.abs(compressed_to_rgb(message, TOPIC).astype(int) - RECORDED[f"{suffix} rgb8"])
    assert difference.max() <= (2 if suffix == "jpg" else 0)


@pytest.mark.parametrize("colour", [(200, 120, 40), (16, 235, 90), (128, 128, 128)])
def test_nv12_gives_back_the_colour_that_its_definition_says(colour: tuple[int, int, int]) -> None:
    red, green, blue = (value / 255 for value in colour)
    # ITU-R BT.601, 8 bits, studio range
    luma = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    cb = 128 - 37.797 * red - 74.203 * green + 112.0 * blue
    cr = 128 + 112.0 * red - 93.786 * green - 18.214 * blue
    rows = np.vstack([np.full((6, 8), round(luma)), np.tile([round(cb), round(cr)], (3, 4))]).astype(np.uint8)
    rgb = image_to_rgb(image("nv12", rows, 6, 8, padding=5), TOPIC).astype(int)
    assert np.abs(rgb - colour).max() <= 2


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_pattern_is_interpolated_as_opencv_does(pattern: str) -> None:
    rows = noise(10, 12, seed=3)
    # OpenCV's newer names say the pattern from the first pixel on, as ROS does.
    conversion = getattr(cv2, f"COLOR_Bayer{pattern.upper()}2RGB")
    expected = cv2.cvtColor(rows, conversion)
    np.testing.assert_array_equal(image_to_rgb(image(f"bayer_{pattern}8", rows, 10, 12, padding=5), TOPIC), expected)


def test_working_cv_bridge_converts_what_the_fast_path_does_not() -> None:
    """The path beyond SUPPORTED_ENCODINGS, with whatever cv_bridge is installed."""
    if _cv_bridge() is None:
        pytest.skip("no cv_bridge that works is installed: none on the package indices does under NumPy 2")
    sensor = pytest.importorskip("sensor_msgs.msg")
    rows = noise(6, 64)
    message = sensor.Image(height=6, width=8, encoding="bgra16", step=64, data=rows.tobytes())
    assert image_to_rgb(message, TOPIC).shape == (6, 8, 3)


@given(
    encoding=st.sampled_from(SUPPORTED_ENCODINGS),
    half_height=st.integers(1, 5),
    half_width=st.integers(1, 5),
    padding=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_row_padding_changes_nothing(encoding: str, half_height: int, half_width: int, padding: int, seed: int) -> None:
    height, width = 2 * half_height, 2 * half_width
    rows = noise(height * 3 // 2 if encoding == "nv12" else height, width * pixel_bytes(encoding), seed)
    plain = image_to_rgb(image(encoding, rows, height, width), TOPIC)
    padded = image_to_rgb(image(encoding, rows, height, width, padding), TOPIC)
    assert plain.shape == (height, width, 3)
    assert plain.dtype == np.uint8
    np.testing.assert_array_equal(plain, padded)


@given(
    encoding=st.sampled_from((*SUPPORTED_ENCODINGS, "", "RGB8", "32FC1", "h264")),
    height=st.integers(0, 5),
    width=st.integers(0, 5),
    step=st.integers(0, 20),
    data=st.binary(max_size=64),
)
def test_malformed_image_raises_nothing_but_one_sentence(
    encoding: str, height: int, width: int, step: int, data: bytes
) -> None:
    sentence = ""
    try:
        rgb = image_to_rgb(Fields(height, width, encoding, step, 0, array.array("B", data)), TOPIC)
        assert rgb.shape == (height, width, 3)
    except LightVLAError as error:
        sentence = str(error)
        assert TOPIC in sentence
    assert "\n" not in sentence


def test_unknown_encoding_is_named_with_the_topic_and_what_is_supported() -> None:
    with pytest.raises(LightVLAError, match=r"/cam_high/image.*'32FC1'.*rgb8, bgr8.*nv12"):
        image_to_rgb(Fields(2, 2, "32FC1", 8, 0, array.array("B", bytes(16))), TOPIC)


def test_too_short_data_says_how_much_was_needed() -> None:
    with pytest.raises(LightVLAError, match=r"sent 5 bytes.*needs 48"):
        image_to_rgb(Fields(4, 4, "rgb8", 12, 0, array.array("B", bytes(5))), TOPIC)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_compressed_image_is_decoded_as_opencv_does(suffix: str) -> None:
    rgb = cv2.resize(noise(4, 12).reshape(4, 4, 3), (40, 30), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    decoded = compressed_to_rgb(Compressed("rgb8; jpeg compressed bgr8", data), TOPIC)
    assert np.abs(decoded.astype(int) - rgb).max() <= (30 if suffix == ".jpg" else 0)
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(decoded, expected)


def test_image_compressed_from_rgb_memory_keeps_its_colours() -> None:
    rgb = noise(8, 24).reshape(8, 8, 3)
    data = cv2.imencode(".png", rgb)[1].tobytes()
    np.testing.assert_array_equal(compressed_to_rgb(Compressed("rgb8; png compressed rgb8", data), TOPIC), rgb)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@given(cut=st.floats(0.0, 0.999))
def test_truncated_compressed_image_is_refused(suffix: str, cut: float) -> None:
    data = cv2.imencode(suffix, noise(16, 48).reshape(16, 16, 3))[1].tobytes()
    # The checksum of the closing PNG chunk is not needed to know that all pixels are there.
    whole = len(data) - (12 if suffix == ".png" else 0)
    with pytest.raises(LightVLAError, match=TOPIC):
        compressed_to_rgb(Compressed("jpeg", data[: int(cut * whole)]), TOPIC)


@given(st.binary(max_size=200))
def test_garbage_instead_of_a_compressed_image_raises_nothing_but_one_sentence(data: bytes) -> None:
    with pytest.raises(LightVLAError, match=TOPIC):
        compressed_to_rgb(Compressed("jpeg", data), TOPIC)


def test_filled_message_reads_back() -> None:
    rgb = noise(6, 24).reshape(6, 8, 3)
    message = Fields()
    fill_image(message, rgb)
    np.testing.assert_array_equal(image_to_rgb(message, TOPIC), rgb)
    assert isinstance(message.data, bytes)
