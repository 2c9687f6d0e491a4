"""Checkpoints as OpenVLA, OpenVLA-OFT and LightVLA publish them, translated into this package's names.

Reads config.json and weight files; decides nothing that the weights cannot tell (that is the contract's).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightvla_core.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    NamedTensor,
    read_json,
    read_weights,
    require_folder,
)
from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.model.config import LlamaConfig, ModelConfig, TokenConfig, TowerConfig

PREPROCESSOR_FILE = "preprocessor_config.json"
# The side files, by the word in their name, and where their tensors go.
SIDE_FILES = {
    "action_head": "action_head.",
    "noisy_action_projector": "noisy_action_projector.",
    "proprio_projector": "proprio_projector.",
    "vision_backbone": "",  # its keys already begin with vision_backbone.
}
# Llama-2-7B, for which published configs give no sizes at all.
_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
}
_TOWER = re.compile(r"vision_backbone\.(?:featurizer|fused_featurizer)\.")
# Parts of published towers that no forward pass reaches.
_UNUSED_TOWER_PARTS = ("norm.", "attn_pool.", "fc_norm.", "head.")


# -- configuration


def read_model_config(folder: Path) -> ModelConfig:
    """Sizes from a published config.json and preprocessor_config.json."""
    require_folder(folder)
    data = read_json(folder / CONFIG_FILE)
    try:
        return _model_config(data, read_json(folder / PREPROCESSOR_FILE))
    except (KeyError, TypeError, IndexError) as error:
        raise LightVLAError(
            f"{folder / CONFIG_FILE} is not an OpenVLA-like configuration: {error!r} is missing or misplaced"
        ) from None


def _model_config(data: dict[str, Any], preprocessor: dict[str, Any]) -> ModelConfig:
    overrides = data.get("tiny_vit_overrides", {})
    towers = tuple(
        TowerConfig(
            timm_id,
            size,
            mean=tuple(preprocessor["means"][i]),
            std=tuple(preprocessor["stds"][i]),
            **overrides.get(timm_id, {}),
        )
        for i, (timm_id, size) in enumerate(zip(data["timm_model_ids"], data["image_sizes"], strict=True))
    )
    text = {**_LLAMA_7B, **data["text_config"]}
    llama = LlamaConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
        head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        rms_norm_eps=text.get("rms_norm_eps", 1e-6),
        rope_theta=text.get("rope_theta", 10000.0),
    )
    tokens = TokenConfig(
        pad=data.get("pad_token_id", 32000),
        action_end=text["vocab_size"] - data.get("pad_to_multiple_of", 64),
        num_bins=data.get("n_action_bins", 256),
    )
    return ModelConfig(towers, llama, tokens)


# -- weights


def read_tensors(folder: Path, contract: PolicyContract, vision_folder: Path | None = None) -> Iterator[NamedTensor]:
    """All tensors that a model of this contract has, under this package's names.

    vision_folder: where to look for a vision_backbone side file instead (it replaces the whole backbone)
    """
    side = {name: find_side_file(folder, name) for name in _wanted_side_files(contract)}
    if vision_folder is not None:
        side["vision_backbone"] = find_side_file(vision_folder, "vision_backbone")
    last_block = {tower: depth - 1 for tower, depth in _tower_depths(folder).items()}
    for name, tensor, file in _base_tensors(folder):
        if name.startswith("vision_backbone.") and side.get("vision_backbone") is not None:
            continue
        if not _is_unused(name, last_block):
            yield NamedTensor(rename(name), tensor, file)
    for part, path in side.items():
        for name, tensor in _merged_lora(read_side_file(path)).items():
            name = SIDE_FILES[part] + name
            if not _is_unused(name, last_block):
                yield NamedTensor(rename(name), tensor, path)


def _wanted_side_files(contract: PolicyContract) -> list[str]:
    wanted = []
    if contract.action_head != "discrete":
        wanted.append("action_head")
    if contract.action_head == "diffusion":
        wanted.append("noisy_action_projector")
    if contract.proprioception:
        wanted.append("proprio_projector")
    if contract.film:
        wanted.append("vision_backbone")
    return wanted


def find_side_file(folder: Path, part: str) -> Path:
    """The one file whose name holds part and "checkpoint", as the published loader finds it."""
    found = sorted(p for p in folder.iterdir() if p.is_file() and part in p.name and "checkpoint" in p.name)
    if part == "action_head":
        found = [p for p in found if "noisy" not in p.name]
    if len(found) != 1:
        what = "none" if not found else ", ".join(p.name for p in found)
        raise LightVLAError(f"{folder} should hold exactly one {part}--N_checkpoint.pt, found {what}")
    return found[0]


def read_side_file(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch.save, without the prefix that data-parallel training leaves on its names."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise LightVLAError(
            f"{path} holds pickled objects other than tensors and was not loaded; expected a state dict of tensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LightVLAError(f"{path} is truncated or not a torch file ({reason}); copy it again") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise LightVLAError(f"{path} does not hold a state dict of tensors; expected one, as torch.save writes it")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _base_tensors(folder: Path) -> Iterator[NamedTensor]:
    if (folder / INDEX_FILE).exists() or (folder / WEIGHTS_FILE).exists():
        yield from read_weights(folder)
        return
    index = folder / "pytorch_model.bin.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["pytorch_model.bin"]
    for file in files:
        if not (folder / file).is_file():
            raise LightVLAError(f"{folder} holds neither {WEIGHTS_FILE} nor {file}; copy the whole checkpoint folder")
        for name, tensor in read_side_file(folder / file).items():
            yield NamedTensor(name, tensor, folder / file)


def _tower_depths(folder: Path) -> dict[str, int]:
    """How many blocks each tower has in the file, by the tower's name prefix."""
    import timm

    config = read_model_config(folder)
    names = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    depths = {}
    for prefix, tower in zip(names, config.towers, strict=False):
        with torch.device("meta"):
            depths[prefix] = tower.depth or len(timm.create_model(tower.timm_id, pretrained=False).blocks)
    return depths


def _is_unused(name: str, last_block: dict[str, int]) -> bool:
    match = _TOWER.match(name)
    if match is None:
        return False
    rest = name[match.end() :]
    return rest.startswith((*_UNUSED_TOWER_PARTS, f"blocks.{last_block[match.group()]}."))


def rename(name: str) -> str:
    """LayerScale's parameter is called gamma in timm, scale_factor in published files."""
    return name.removesuffix("scale_factor") + "gamma" if name.endswith(".scale_factor") else name


def _merged_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold low-rank updates into their weights: W + (min(r, 16) / r) B A (the published fine-tuning's scale)."""
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        base = name.replace(".base_layer.", ".")
        stem = name.removesuffix("base_layer.weight")
        if stem != name and f"{stem}lora_A.default.weight" in state:
            a, b = (state[f"{stem}lora_{x}.default.weight"].float() for x in "AB")
            rank = a.shape[0]
            update = (b.flatten(1) @ a.flatten(1)).reshape(tensor.shape)
            tensor = tensor.float() + min(rank, 16) / rank * update
        merged[base] = tensor
    return merged
