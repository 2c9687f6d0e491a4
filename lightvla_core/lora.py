"""Low-rank adapters (LoRA) as peft stores them, and merging them into weights: W + scale · B A.

Reads folders with adapter_config.json and adapter_model.safetensors; does not train. Whole checkpoints are merged in
merging.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightvla_core.errors import LightVLAError
from lightvla_core.folders import read_json
from lightvla_core.weights import StoredTensor, check_finite, list_tensors

FOLDER = "lora_adapter"
CONFIG_FILE = "adapter_config.json"

_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")
# What an adapter may carry beside plain low-rank factors, and the value that means it does not.
_PLAIN: dict[str, Any] = {"use_dora": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None}
_SAMPLED_MATRICES = 32  # enough to tell whether an adapter is in the weights


@dataclass(frozen=True)
class Update:
    """The change of one weight: scale · B A, of factors that still lie in their file.

    a (rank, inputs...), b (outputs, rank...): those of a convolution carry its kernel axes
    """

    a: StoredTensor
    b: StoredTensor
    scale: float

    def factors(self) -> tuple[Tensor, Tensor]:
        """B (outputs, rank) and A (rank, inputs), float32."""
        b, a = self.b.load(), self.a.load()
        check_finite(b, self.b.name, self.b.file)
        check_finite(a, self.a.name, self.a.file)
        return b.float().flatten(1), a.float().flatten(1)

    def apply(self, weight: Tensor) -> Tensor:
        """The merged weight, float32, in the weight's shape."""
        b, a = self.factors()
        return torch.addmm(weight.float().flatten(1), b, a, alpha=self.scale).reshape(weight.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        rank = self.a.shape[0]
        inputs, outputs = math.prod(self.a.shape[1:]), self.b.shape[0]
        return self.b.size == outputs * rank and shape[:1] == (outputs,) and math.prod(shape[1:]) == inputs


@dataclass(frozen=True)
class Adapter:
    """Updates by the name of the weight that each changes."""

    folder: Path
    updates: dict[str, Update]

    def only(self, keep: Callable[[str], bool]) -> Adapter:
        return Adapter(self.folder, {name: update for name, update in self.updates.items() if keep(name)})


def read_adapter(folder: Path) -> Adapter:
    """An adapter in peft's form. Raises LightVLAError for one that is more than plain low-rank updates."""
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict) or not isinstance(config.get("lora_alpha"), int | float):
        raise LightVLAError(f"{folder / CONFIG_FILE} is not a LoRA configuration: expected r and lora_alpha in it")
    if type(config.get("r")) is not int or config["r"] < 1:
        raise LightVLAError(f"{folder / CONFIG_FILE}: r should be a rank of at least 1, but is {config.get('r')!r}")
    for option, plain in _PLAIN.items():
        if config.get(option) not in (plain, None, False, []):
            raise LightVLAError(f"{folder / CONFIG_FILE}: {option} is {config[option]!r}, which is not supported")
    if config.get("alpha_pattern") or config.get("rank_pattern"):
        raise LightVLAError(f"{folder / CONFIG_FILE} has ranks or scales per layer, which is not supported")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise LightVLAError(f"{folder} holds no {_WEIGHT_FILES[0]}; copy the whole adapter folder")
    return Adapter(folder, pair_factors(list_tensors(path), lambda rank: scale))


def pair_factors(tensors: Iterable[StoredTensor], scale: Callable[[int], float]) -> dict[str, Update]:
    """Updates by weight name, from tensors named ….lora_A.weight and ….lora_B.weight. scale: from the rank"""
    factors: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            raise LightVLAError(f"{tensor.file}: the tensor {tensor.name} is no LoRA factor of a linear layer")
        if len(tensor.shape) < 2 or 0 in tensor.shape:
            raise LightVLAError(
                f"{tensor.file}: the tensor {tensor.name} has shape {tensor.shape}, but a LoRA factor is a matrix"
            )
        factors.setdefault(f"{match['module']}.weight", {})[match["factor"]] = tensor
    for name, pair in factors.items():
        if set(pair) != {"A", "B"}:
            lone = next(iter(pair.values()))
            raise LightVLAError(f"{lone.file} holds the tensor {lone.name}, but not the other factor of {name}")
    return {name: Update(pair["A"], pair["B"], scale(pair["A"].shape[0])) for name, pair in factors.items()}


def merge(adapter: Adapter, tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """The same tensors, those that the adapter changes merged when they are loaded (float32 then)."""
    merged, left = [], dict(adapter.updates)
    for tensor in tensors:
        update = left.pop(tensor.name, None)
        merged.append(tensor if update is None else merge_one(tensor, update))
    if left:
        name, update = min(left.items())
        raise LightVLAError(
            f"{update.a.file} holds the tensor {update.a.name}, but the weights to merge into hold no {name}"
        )
    return merged


def merge_one(tensor: StoredTensor, update: Update) -> StoredTensor:
    _require_fit(tensor, update)
    return dataclasses.replace(tensor, load=lambda: update.apply(tensor.load()))


def _require_fit(tensor: StoredTensor, update: Update) -> None:
    if not update.fits(tensor.shape):
        raise LightVLAError(
            f"{update.a.file}: the tensor {update.a.name} has shape {update.a.shape} and its partner "
            f"{update.b.shape}, which do not fit {tensor.name} of shape {tensor.shape}"
        )


def share_contained(adapter: Adapter, tensors: Iterable[StoredTensor]) -> float | None:
    """How much of the adapter the weights hold already: near 1 after merging, near 0 before; None for a zero adapter.

    The projection <W, D> / <D, D> of the weights on their update D = scale · B A, over a sample of layers. Weights that
    the update is no part of are nearly orthogonal to it.
    """
    stored = [tensor for tensor in tensors if tensor.name in adapter.updates]
    stored = stored[:: max(1, len(stored) // _SAMPLED_MATRICES)]
    along = square = 0.0
    for tensor in stored:
        update = adapter.updates[tensor.name]
        _require_fit(tensor, update)
        (b, a), weight = update.factors(), tensor.load().float().flatten(1)
        along += update.scale * float(((b.T @ weight) * a).sum())
        square += update.scale**2 * float(((b.T @ b) * (a @ a.T)).sum())
    return along / square if square > 0 else None
