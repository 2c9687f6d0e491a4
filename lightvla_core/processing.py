"""Camera images and an instruction to the tensors that the network reads, as the contract says.

Each image step is the published evaluation's, in its order; NumPy, Pillow and OpenCV do the work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from lightvla_core.checkpoint import TOKENIZER_FILE
from lightvla_core.contract import Camera, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.model.config import TokenConfig, TowerConfig
from lightvla_core.model.sequence import PLACEHOLDER, TextInput

RGB = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]


# -- images


def check_image(image: RGB, camera: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise LightVLAError(f"the image of {camera} should be uint8 (height, width, 3) in RGB order, but is {got}")
    if 0 in image.shape:
        raise LightVLAError(f"the image of {camera} is empty: {image.shape}")


def prepare_image(image: RGB, camera: Camera) -> RGB:
    """uint8 (any height, any width, 3), RGB -> uint8 (camera.height, camera.width, 3)"""
    check_image(image, camera.name)
    image = np.ascontiguousarray(np.rot90(image, -camera.rotate // 90))
    if camera.jpeg_quality is not None:
        image = jpeg_round_trip(image, camera.jpeg_quality)
    size = (camera.height, camera.width)
    if camera.resize == "lanczos3" and image.shape[:2] != size:
        image = resize_lanczos3(image, *size)
    if camera.crop_area < 1.0:
        image = crop_center(image, camera.crop_area, *size)
    if image.shape[:2] != size:
        image = np.asarray(Image.fromarray(image).resize((camera.width, camera.height), Image.Resampling.BICUBIC))
    return image


def jpeg_round_trip(image: RGB, quality: int) -> RGB:
    """Encode as JPEG (4:2:0) and decode: the artefacts that training images carry.

    TensorFlow decodes with the fast integer DCT, which OpenCV and Pillow do not offer and from which their pixels
    differ by up to 14 levels.
    """
    simplejpeg = _simplejpeg()
    ok, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return np.asarray(simplejpeg.decode_jpeg(encoded, colorspace="RGB", fastdct=True, fastupsample=False))


def _simplejpeg() -> Any:
    try:
        import simplejpeg  # here, since few contracts ask for the round trip
    except ImportError:
        raise LightVLAError(
            "the contract's jpeg_quality needs the package simplejpeg; install it with `pip install simplejpeg`"
        ) from None
    return simplejpeg


def require_packages(contract: PolicyContract) -> None:
    """Raises LightVLAError where a package is missing that preparing this contract's images takes."""
    if any(camera.jpeg_quality is not None for camera in contract.cameras):
        _simplejpeg()


def resize_lanczos3(image: RGB, height: int, width: int) -> RGB:
    """Antialiased Lanczos-3 in floating point, rounded half to even (TensorFlow's image resize)."""
    rows, columns = _lanczos3_weights(image.shape[0], height), _lanczos3_weights(image.shape[1], width)
    resized = np.einsum("ij,jkc->ikc", rows, image.astype(np.float32), optimize=True)
    resized = np.einsum("ij,kjc->kic", columns, resized, optimize=True)
    return np.asarray(np.rint(resized).clip(0, 255), dtype=np.uint8)


@lru_cache(maxsize=16)
def _lanczos3_weights(source: int, target: int) -> NDArray[np.float32]:
    """(target, source): half-pixel centres, a kernel widened by the scale, rows that sum to one also at borders."""
    scale = source / target
    widening = max(scale, 1.0)
    centers = (np.arange(target) + 0.5) * scale - 0.5
    x = (np.arange(source)[None, :] - centers[:, None]) / widening
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def crop_center(image: RGB, area: float, height: int, width: int) -> RGB:
    """Cut out the centre, of this fraction of the area, and stretch it to size (TensorFlow's crop_and_resize:
    bilinear with corners aligned, no antialiasing; truncated, not rounded, to uint8).
    """
    side = math.sqrt(area)
    rows, columns = (
        ((1 - side) / 2 * (source - 1) + np.arange(target) * (side * (source - 1) / (target - 1))).astype(np.float32)
        for source, target in ((image.shape[0], height), (image.shape[1], width))
    )
    scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
    cropped = _interpolate(_interpolate(scaled, columns, axis=1), rows, axis=0)
    return np.asarray(cropped.clip(0, 1) * 255.5, dtype=np.uint8)


def _interpolate(values: Floats, places: Floats, axis: int) -> Floats:
    """Exact linear interpolation along an axis of three; OpenCV's remap rounds the weights to 1/32."""
    before = np.floor(places).astype(np.intp)
    after = np.minimum(before + 1, values.shape[axis] - 1)
    weight = np.expand_dims(places - before, tuple({0, 1, 2} - {axis}))
    return np.asarray(values.take(before, axis) * (1 - weight) + values.take(after, axis) * weight)


def to_pixels(images: list[RGB], towers: tuple[TowerConfig, ...]) -> torch.Tensor:
    """Prepared images -> float32 (1, images * towers * 3, height, width), normalised for each tower in turn."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    normalized = [
        (stacked - torch.tensor(tower.mean)[:, None, None]) / torch.tensor(tower.std)[:, None, None] for tower in towers
    ]
    return torch.cat(normalized, dim=1).flatten(0, 1)[None]


# -- words


class PromptEncoder:
    """Instruction -> prompt, action slots and STOP, as token ids."""

    def __init__(self, tokenizer: Tokenizer, contract: PolicyContract, tokens: TokenConfig) -> None:
        self._tokenizer = tokenizer
        self._contract = contract
        self._tokens = tokens

    @classmethod
    def from_folder(cls, folder: Path, contract: PolicyContract, tokens: TokenConfig) -> PromptEncoder:
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise LightVLAError(f"{folder} holds no {TOKENIZER_FILE}; a checkpoint needs its tokenizer")
        try:
            return cls(Tokenizer.from_file(str(path)), contract, tokens)
        except Exception as error:  # the library raises plain Exception
            raise LightVLAError(f"{path} is not a tokenizer ({error}); copy it again") from None

    def prompt_ids(self, instruction: str) -> list[int]:
        """BOS, the prompt around the lower-cased instruction, and the empty token that precedes the actions."""
        if not instruction.strip():
            raise LightVLAError("the instruction is empty; say what the robot should do, such as 'pick up the cube'")
        text = self._contract.prompt_template.format(instruction=instruction.strip().lower())
        ids = self._tokenizer.encode(text).ids
        if ids[:1] != [self._tokens.bos]:
            ids = [self._tokens.bos, *ids]
        return ids if ids[-1] == self._tokens.empty else [*ids, self._tokens.empty]

    def encode(self, instructions: list[str]) -> TextInput:
        """A batch of instructions, right-padded to the longest. With causal attention, where the model itself writes
        what follows, there are neither slots nor STOP.
        """
        ending: list[int] = []
        if self._contract.attention == "bidirectional":
            slots = self._contract.chunk_length * len(self._contract.actions)
            ending = [PLACEHOLDER] * slots + [self._tokens.stop]
        prompts = [self.prompt_ids(instruction) for instruction in instructions]
        length = max(map(len, prompts)) + len(ending)
        ids = torch.full((len(prompts), length), self._tokens.pad)
        mask, is_slot = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            end = len(prompt) + len(ending)
            ids[row, :end] = torch.tensor(prompt + ending)
            mask[row, :end] = True
            is_slot[row, len(prompt) : end - 1] = True
        return TextInput(ids, mask, is_slot)


def prepare_images(images: Mapping[str, RGB], contract: PolicyContract) -> list[RGB]:
    """The contract's cameras, in its order, each prepared. Raises when one is missing or one too many came."""
    if set(images) != set(contract.camera_names):
        raise LightVLAError(
            f"the policy expects images of {', '.join(contract.camera_names)}, but got {', '.join(images) or 'none'}"
        )
    return [prepare_image(images[camera.name], camera) for camera in contract.cameras]
