"""The picture of what the policy kept."""

from __future__ import annotations

import numpy as np
import pytest

from lightvla_core.contract import Camera, Channel, PolicyContract
from lightvla_ros.overlay import TILE, draw_overlay, policy_view

NAMES = ("cam_high", "cam_left_wrist")


def contract(*cameras: Camera) -> PolicyContract:
    return PolicyContract(
        robot="aloha",
        cameras=cameras,
        proprioception=(Channel("waist", "rad"),),
        actions=(Channel("waist", "rad"),),
        action_space="joint_position",
        chunk_length=25,
        control_rate=25.0,
        normalization="bounds",
        statistics_key="aloha",
    )


TWO = contract(*(Camera(name, 112, 112) for name in NAMES))


def white(height: int = 112, width: int = 112) -> dict[str, np.ndarray]:
    return {name: np.full((height, width, 3), 255, np.uint8) for name in NAMES}


@pytest.mark.parametrize("size", [(112, 112), (480, 640), (1080, 1920)])
@pytest.mark.parametrize("grid", [(8, 8), (16, 16)])
def test_cameras_stand_side_by_side_whatever_their_size(size: tuple[int, int], grid: tuple[int, int]) -> None:
    picture = draw_overlay(white(*size), {name: np.ones(grid, bool) for name in NAMES}, TWO)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 2 * TILE + 4
    assert picture.shape[0] > TILE
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0


def test_kept_patches_are_clear_and_dropped_ones_dimmed() -> None:
    kept = np.zeros((8, 8), bool)
    kept[2, 5] = True
    picture = draw_overlay(white(), {"cam_high": kept, "cam_left_wrist": ~kept}, TWO)
    side = TILE // 8

    def centre(tile: int, row: int, column: int) -> int:
        left = tile * (TILE + 4) + column * side
        return int(picture[row * side + side // 2, left + side // 2].max())

    assert centre(0, 2, 5) == 255
    assert centre(0, 2, 4) < 160
    assert centre(1, 2, 5) < 160
    assert centre(1, 2, 4) == 255


def test_overlay_leaves_the_camera_image_untouched() -> None:
    images = white()
    draw_overlay(images, {name: np.zeros((8, 8), bool) for name in NAMES}, TWO)
    assert all((image == 255).all() for image in images.values())


def test_caption_shows_the_share_of_kept_patches() -> None:
    def accent(kept: int) -> int:
        grid = (np.arange(64) < kept).reshape(8, 8)
        picture = draw_overlay(white(), {name: grid for name in NAMES}, TWO)
        return int((picture[TILE + 33, :TILE] == (64, 224, 160)).all(axis=-1).sum())

    assert accent(0) == 0
    assert accent(16) == pytest.approx(0.25 * (TILE - 16), abs=1)
    assert accent(64) == TILE - 16


def test_view_is_turned_clockwise_as_the_contract_says() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[0, 0] = 255
    assert policy_view(image, Camera("c", rotate=90))[0, 1].all()
    assert policy_view(image, Camera("c", rotate=180))[1, 3].all()
    assert policy_view(image, Camera("c", rotate=90)).shape == (4, 2, 3)


def test_view_is_the_centre_crop_of_the_contracts_area() -> None:
    view = policy_view(np.zeros((200, 400, 3), np.uint8), Camera("c", crop_area=0.81))
    assert view.shape == (180, 360, 3)
