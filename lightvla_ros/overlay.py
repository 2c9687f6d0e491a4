"""What the policy looked at, as a picture: camera views side by side, the patches it dropped dimmed. Pure, OpenCV only.

Nothing here decides which patches are kept; that is the token pruner's in lightvla_core.model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import Camera, PolicyContract

RGB = NDArray[np.uint8]

TILE = 448  # px, side of a camera's square; 16x16 and 8x8 patches divide it
_CAPTION = 40  # px, height of the strip below a tile
_GAP = 4  # px, between tiles
_DIM = 0.6  # brightness of a dropped patch
_BACKGROUND = (18, 20, 24)
_TEXT = (235, 238, 242)
_TRACK = (52, 56, 64)
_ACCENT = (64, 224, 160)


def draw_overlay(images: Mapping[str, RGB], kept: Mapping[str, NDArray[np.bool_]], contract: PolicyContract) -> RGB:
    """One picture of all the contract's cameras, in its order.

    images: camera -> uint8 (height, width, 3) RGB as the camera delivered it; kept: camera -> bool (rows, columns),
    as in ActionChunk. Returns uint8 (TILE + caption, cameras · TILE + gaps, 3) RGB, both sides even (video encoders).
    """
    tiles = [_tile(policy_view(images[c.name], c), kept[c.name], c.name) for c in contract.cameras]
    gap = np.full((tiles[0].shape[0], _GAP, 3), _BACKGROUND, np.uint8)
    strips = [strip for tile in tiles for strip in (gap, tile)][1:]
    return cast(RGB, np.concatenate(strips, axis=1))


def policy_view(image: RGB, camera: Camera) -> RGB:
    """The part of a camera image that the policy sees, turned as it sees it, without its resize.

    Patches lie on the image after rotation and centre crop; both sides are cropped by the same factor.
    """
    turned = np.rot90(image, k=-(camera.rotate // 90))
    height, width = turned.shape[:2]
    side = math.sqrt(camera.crop_area)
    rows, columns = max(1, round(height * side)), max(1, round(width * side))
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.ascontiguousarray(turned[top : top + rows, left : left + columns])


def _tile(view: RGB, kept: NDArray[np.bool_], name: str) -> RGB:
    """uint8 (TILE + _CAPTION, TILE, 3): the view with its kept patches clear and outlined, over its caption."""
    picture = cv2.resize(view, (TILE, TILE), interpolation=_interpolation(view))
    mask = cast(RGB, cv2.resize(kept.astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST))
    tile = cv2.copyTo(picture, mask, _dimmed(picture))
    tile[_outline(mask)] = _ACCENT
    return cast(RGB, np.concatenate([tile, _caption(name, int(kept.sum()), kept.size)], axis=0))


def _interpolation(view: RGB) -> int:
    return cv2.INTER_AREA if min(view.shape[:2]) > TILE else cv2.INTER_CUBIC


def _dimmed(picture: RGB) -> RGB:
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cast(RGB, cv2.addWeighted(picture, 0.4 * _DIM, grey, 0.6 * _DIM, 0.0))


def _outline(mask: RGB) -> NDArray[np.bool_]:
    """The inner edge, 2 px wide, of the kept regions (mask 1): neighbouring kept patches share one outline."""
    inner = cv2.erode(mask, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return cast(NDArray[np.bool_], mask > inner)


def _caption(name: str, kept: int, total: int) -> RGB:
    strip = np.full((_CAPTION, TILE, 3), _BACKGROUND, np.uint8)
    count = f"kept {kept}/{total}"
    face, scale, baseline = cv2.FONT_HERSHEY_SIMPLEX, 0.6, _CAPTION - 16
    (width, _), _ = cv2.getTextSize(count, face, scale, 1)
    cv2.putText(strip, name, (8, baseline), face, scale, _TEXT, 1, cv2.LINE_AA)
    cv2.putText(strip, count, (TILE - 8 - width, baseline), face, scale, _TEXT, 1, cv2.LINE_AA)
    bar = round((TILE - 16) * kept / max(1, total))
    strip[_CAPTION - 8 : _CAPTION - 4, 8 : TILE - 8] = _TRACK
    strip[_CAPTION - 8 : _CAPTION - 4, 8 : 8 + bar] = _ACCENT
    return strip
