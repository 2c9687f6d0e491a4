"""Camera images and instructions become what the network was trained on."""

import dataclasses
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightvla_core.contract import Camera, Pruning
from lightvla_core.errors import LightVLAError
from lightvla_core.presets import aloha_contract, openvla_7b, tiny, tiny_tokenizer
from lightvla_core.processing import (
    PromptEncoder,
    crop_center,
    jpeg_round_trip,
    prepare_image,
    prepare_images,
    require_packages,
    resize_lanczos3,
    to_pixels,
)

PARITY = os.environ.get("LIGHTVLA_PARITY")
CONTRACT = aloha_contract((Camera("cam_high", 112, 112), Camera("cam_left_wrist", 112, 112)))
TOKENS = tiny().tokens
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@cache
def encoder():
    return PromptEncoder(tiny_tokenizer(), CONTRACT, TOKENS)


def test_an_image_of_the_right_size_passes_untouched():
    assert prepare_image(IMAGE, Camera("c", 48, 64)) is not IMAGE
    assert np.array_equal(prepare_image(IMAGE, Camera("c", 48, 64)), IMAGE)


def test_rotation_is_clockwise():
    assert np.array_equal(prepare_image(IMAGE, Camera("c", 48, 64, rotate=180)), IMAGE[::-1, ::-1])
    turned = prepare_image(IMAGE, Camera("c", 64, 48, rotate=90))
    assert np.array_equal(turned[0, -1], IMAGE[0, 0])


@given(st.integers(8, 60), st.integers(8, 60))
def test_a_uniform_image_stays_uniform_through_every_step(height, width):
    grey = np.full((height, width, 3), 93, dtype=np.uint8)
    camera = Camera("c", 28, 28, rotate=90, jpeg_quality=95, resize="lanczos3", crop_area=0.9)
    assert np.abs(prepare_image(grey, camera).astype(int) - 93).max() <= 1


@pytest.mark.parametrize("image", [IMAGE.astype(float), IMAGE[..., 0], IMAGE[..., :2], None, IMAGE[:0]])
def test_something_that_is_no_rgb_image_is_refused(image):
    with pytest.raises(LightVLAError, match="the image of c"):
        prepare_image(image, Camera("c"))


def test_cameras_are_taken_by_name_in_the_order_of_the_contract():
    images = {"cam_left_wrist": np.full((112, 112, 3), 1, np.uint8), "cam_high": np.full((112, 112, 3), 2, np.uint8)}
    assert [int(image[0, 0, 0]) for image in prepare_images(images, CONTRACT)] == [2, 1]


@pytest.mark.parametrize("names", [[], ["cam_high"], ["cam_high", "cam_left_wrist", "cam_low"]])
def test_a_missing_or_surplus_camera_is_refused(names):
    with pytest.raises(LightVLAError, match="expects images of cam_high, cam_left_wrist"):
        prepare_images(dict.fromkeys(names, IMAGE), CONTRACT)


def test_each_tower_gets_its_own_three_normalised_channels():
    pixels = to_pixels([np.full((224, 224, 3), 255, np.uint8)], openvla_7b().towers)
    assert pixels.shape == (1, 6, 224, 224)
    assert pixels[0, 0, 0, 0] == pytest.approx((1 - 0.484375) / 0.228515625)
    assert pixels[0, 3, 0, 0] == pytest.approx(1.0)


def test_a_prompt_is_lower_cased_and_ends_in_the_empty_token():
    ids = encoder().prompt_ids("  Pick up the RED cube ")
    assert ids == encoder().prompt_ids("pick up the red cube")
    assert ids[0] == TOKENS.bos
    assert ids[-1] == TOKENS.empty
    words = tiny_tokenizer().decode(ids[1:-1])
    assert words == "In: What action should the robot take to pick up the red cube?\nOut:"


@given(st.text(min_size=1).filter(str.strip))
def test_any_instruction_can_be_written_in_tokens(text):
    ids = encoder().prompt_ids(text)
    assert max(ids) < TOKENS.action_end - TOKENS.num_bins
    assert 0 not in ids, "no unknown token"


@pytest.mark.parametrize("instruction", ["", "  ", "\n"])
def test_an_empty_instruction_is_refused(instruction):
    with pytest.raises(LightVLAError, match="the instruction is empty"):
        encoder().prompt_ids(instruction)


def test_a_batch_is_padded_on_the_right_and_every_row_has_all_slots():
    text = encoder().encode(["go", "pick up the red cube and put it into the bowl"])
    assert text.slots.sum(dim=1).tolist() == [350, 350]
    lengths = text.mask.sum(dim=1)
    assert lengths[0] < lengths[1] == text.ids.shape[1]
    for row, length in enumerate(lengths.tolist()):
        assert text.ids[row, length - 1] == TOKENS.stop
        assert (text.ids[row, length:] == TOKENS.pad).all()
        assert not text.slots[row, length - 1]
    assert torch.equal(text.mask[1], torch.ones_like(text.mask[1]))


def test_where_the_model_writes_its_actions_the_prompt_stands_alone():
    contract = dataclasses.replace(
        CONTRACT, attention="causal", action_head="discrete", proprioception=(), pruning=Pruning(enabled=False)
    )
    text = PromptEncoder(tiny_tokenizer(), contract, TOKENS).encode(["go", "pick up the red cube"])
    assert not text.slots.any()
    for row, length in enumerate(text.mask.sum(dim=1).tolist()):
        assert text.ids[row, length - 1] == TOKENS.empty


def test_a_missing_jpeg_library_is_named_before_the_first_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(LightVLAError, match="pip install simplejpeg"):
        jpeg_round_trip(IMAGE, 95)
    require_packages(CONTRACT)
    camera = dataclasses.replace(CONTRACT.cameras[0], jpeg_quality=95)
    with pytest.raises(LightVLAError, match="pip install simplejpeg"):
        require_packages(dataclasses.replace(CONTRACT, cameras=(camera, *CONTRACT.cameras[1:])))
    prepare_image(IMAGE, Camera("c"))  # without the round trip nobody needs it


def test_the_jpeg_round_trip_stays_near_a_smooth_image():
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2)
    assert np.abs(jpeg_round_trip(ramp, 95).astype(int) - ramp).max() <= 4


@pytest.mark.skipif(PARITY is None, reason="LIGHTVLA_PARITY does not name a parity folder")
@pytest.mark.parametrize("size", ["480x640", "256x256", "224x224"])
def test_recorded_images_of_the_published_implementation(size):
    """Identical, but for single levels where a sum falls on a rounding edge (fewer than 1 in 10,000 values)."""
    folder = Path(PARITY) / "preprocessing"
    recorded = np.load(folder / f"{size}.npz")
    raw, decoded = (
        np.asarray(Image.open(folder / f"{size}_{kind}.png").convert("RGB")) for kind in ("input", "jpeg_decoded")
    )

    def assert_close(computed, name, share=1e-4):
        difference = np.abs(computed.astype(int) - recorded[name])
        assert difference.max() <= 1
        assert (difference > 0).mean() < share

    assert np.array_equal(prepare_image(raw, Camera("c")), recorded["processor_resized_uint8"])
    assert np.array_equal(jpeg_round_trip(raw, 95), decoded)
    assert_close(resize_lanczos3(decoded, 224, 224), "lanczos_resized_uint8")
    assert_close(crop_center(recorded["policy_input_uint8"], 0.9, 224, 224), "center_cropped_uint8")
    # The whole evaluation in one call. What is 224x224 already was recorded without round trip and resize.
    jpeg_quality = None if size == "224x224" else 95
    evaluated = prepare_image(raw, Camera("c", jpeg_quality=jpeg_quality, resize="lanczos3", crop_area=0.9))
    assert_close(evaluated, "center_cropped_uint8", share=2e-4)  # the crop reads each resized pixel more than once
    if jpeg_quality is not None:
        assert_close(prepare_image(raw, Camera("c", jpeg_quality=95, resize="lanczos3")), "policy_input_uint8")
    if "processor_pixel_values" in recorded:
        pixels = to_pixels([recorded["processor_resized_uint8"]], openvla_7b().towers).numpy()
        assert np.abs(pixels - recorded["processor_pixel_values"]).max() < 1e-5
