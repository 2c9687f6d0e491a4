"""Image and CompressedImage messages -> RGB arrays, and back. Works on the messages' fields; imports no ROS.

What a policy then does to the image (rotation, crop, resize) is not here but in lightvla_core.processing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError

RGB = NDArray[np.uint8]


class ImageFields(Protocol):
    """The fields of sensor_msgs/Image that carry pixels."""

    height: int
    width: int
    encoding: str
    is_bigendian: Any
    step: int
    data: Any


class CompressedImageFields(Protocol):
    """The fields of sensor_msgs/CompressedImage that carry pixels."""

    format: str
    data: Any


# encoding -> (bytes a pixel, OpenCV conversion of (height, width[, channels]) uint8 to RGB; None: it is RGB already).
# ROS names a Bayer pattern by its first row and then its second; OpenCV's old names (kept for its 4.5) start at the
# second row and second column, so rggb is its BG.
_PACKED: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
}
# encoding -> (16-bit channels, OpenCV conversion); the only encodings here for which is_bigendian means something.
_DEEP: dict[str, tuple[int, int | None]] = {
    "rgb16": (3, None),
    "bgr16": (3, cv2.COLOR_BGR2RGB),
    "mono16": (1, cv2.COLOR_GRAY2RGB),
}
SUPPORTED_ENCODINGS = (*_PACKED, *_DEEP, "nv12")


def image_to_rgb(message: ImageFields, topic: str) -> RGB:
    """The pixels of a sensor_msgs/Image as uint8 (height, width, 3) RGB, in memory of their own.

    topic: where the message came from, for error sentences. Encodings outside SUPPORTED_ENCODINGS go through
    cv_bridge where that works. Raises LightVLAError for an unknown encoding or malformed data, and nothing else.
    """
    encoding = message.encoding.lower()
    if message.height < 1 or message.width < 1:
        raise LightVLAError(f"{topic} sent an image of {message.width}x{message.height} px; expected at least 1x1")
    if encoding in _PACKED:
        return _guarded(_packed_to_rgb, message, topic, *_PACKED[encoding])
    if encoding in _DEEP:
        return _guarded(_deep_to_rgb, message, topic, *_DEEP[encoding])
    if encoding == "nv12":
        return _guarded(_nv12_to_rgb, message, topic)
    return _through_cv_bridge(message, topic)


def compressed_to_rgb(message: CompressedImageFields, topic: str) -> RGB:
    """The pixels of a JPEG or PNG sensor_msgs/CompressedImage as uint8 (height, width, 3) RGB.

    Raises LightVLAError for any other format and for damaged data, and nothing else.
    """
    data = np.frombuffer(message.data, np.uint8)
    if data.size == 0:
        raise LightVLAError(f"{topic} sent a compressed image without data; expected JPEG or PNG")
    # Some OpenCV versions fill the lower part of a truncated JPEG with grey instead of refusing it.
    cut_off = data[:2].tobytes() == b"\xff\xd8" and data.tobytes().rfind(b"\xff\xd9") < 0
    try:
        decoded = None if cut_off else cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise LightVLAError(
            f"{topic} sent a compressed image (format '{message.format}', {data.size} bytes) that cannot be decoded; "
            "expected complete JPEG or PNG data"
        )
    # image_transport writes "rgb8; jpeg compressed bgr8"; data compressed from RGB memory come out as RGB already.
    if "compressed rgb" in message.format:
        return cast(RGB, decoded)
    return cast(RGB, cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))


def fill_image(message: ImageFields, rgb: RGB) -> None:
    """Write uint8 (height, width, 3) RGB into a sensor_msgs/Image; its header is left to the caller."""
    message.height, message.width = int(rgb.shape[0]), int(rgb.shape[1])
    message.encoding = "rgb8"
    message.is_bigendian = 0
    message.step = message.width * 3
    message.data = rgb.tobytes()  # rclpy takes bytes in 0.3 ms a VGA frame, and an array in 97 ms


def _guarded(convert: Callable[..., RGB], message: ImageFields, topic: str, *arguments: Any) -> RGB:
    try:
        return convert(message, topic, *arguments)
    except cv2.error as error:  # such as an odd width with 4:2:2 chroma
        raise LightVLAError(
            f"{topic} sent a {message.width}x{message.height} px image with encoding '{message.encoding}' "
            f"that OpenCV refuses ({str(getattr(error, 'err', error)).splitlines()[0]}); check the camera driver"
        ) from None


def _rows(message: ImageFields, topic: str, rows: int, row_bytes: int) -> RGB:
    """The message's data without row padding: uint8 (rows, row_bytes)."""
    data = np.frombuffer(message.data, np.uint8)
    if message.step < row_bytes:
        raise LightVLAError(
            f"{topic} sent a row step of {message.step} bytes; "
            f"{message.width} px with encoding '{message.encoding}' need at least {row_bytes}"
        )
    if data.size < rows * message.step:
        raise LightVLAError(
            f"{topic} sent {data.size} bytes; a {message.width}x{message.height} px image with encoding "
            f"'{message.encoding}' and a row step of {message.step} needs {rows * message.step}"
        )
    return data[: rows * message.step].reshape(rows, message.step)[:, :row_bytes]


def _packed_to_rgb(message: ImageFields, topic: str, pixel_bytes: int, conversion: int | None) -> RGB:
    rows = _rows(message, topic, message.height, message.width * pixel_bytes)
    shape = (message.height, message.width) if pixel_bytes == 1 else (message.height, message.width, pixel_bytes)
    return _converted(np.ascontiguousarray(rows).reshape(shape), conversion)


def _deep_to_rgb(message: ImageFields, topic: str, channels: int, conversion: int | None) -> RGB:
    rows = np.ascontiguousarray(_rows(message, topic, message.height, message.width * channels * 2))
    deep = rows.view(">u2" if message.is_bigendian else "<u2")
    # 65535 becomes 255, rounded to nearest: the scale of cv_bridge.
    pixels = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    shape = (message.height, message.width) if channels == 1 else (message.height, message.width, channels)
    return _converted(pixels.reshape(shape), conversion)


def _nv12_to_rgb(message: ImageFields, topic: str) -> RGB:
    if message.height % 2 or message.width % 2:
        raise LightVLAError(f"{topic} sent nv12 of {message.width}x{message.height} px; both must be even")
    rows = _rows(message, topic, message.height * 3 // 2, message.width)
    return _converted(np.ascontiguousarray(rows), cv2.COLOR_YUV2RGB_NV12)


def _converted(pixels: RGB, conversion: int | None) -> RGB:
    return pixels.copy() if conversion is None else cast(RGB, cv2.cvtColor(pixels, conversion))


@functools.cache
def _cv_bridge() -> Any | None:
    """A CvBridge, or None where it is missing or, as some builds under NumPy 2, does not even import."""
    try:
        from cv_bridge import CvBridge

        return CvBridge()
    except Exception:  # a build for another NumPy raises AttributeError, ImportError or SystemError
        return None


def _through_cv_bridge(message: ImageFields, topic: str) -> RGB:
    bridge = _cv_bridge()
    supported = ", ".join(SUPPORTED_ENCODINGS)
    if bridge is None:
        raise LightVLAError(
            f"{topic} sends the encoding '{message.encoding}', which needs a working cv_bridge; "
            f"without it these are supported: {supported}"
        )
    try:
        rgb = np.asarray(bridge.imgmsg_to_cv2(message, "rgb8"))
    except Exception as error:  # whatever a broken build or unknown encoding raises
        raise LightVLAError(
            f"{topic} sends the encoding '{message.encoding}', which cv_bridge cannot convert to rgb8 "
            f"({type(error).__name__}); always supported are: {supported}"
        ) from None
    if rgb.dtype != np.uint8 or rgb.shape != (message.height, message.width, 3):
        raise LightVLAError(f"{topic}: cv_bridge made {rgb.dtype} {rgb.shape} of the encoding '{message.encoding}'")
    return np.ascontiguousarray(rgb)
