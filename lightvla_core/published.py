"""Checkpoints as OpenVLA, OpenVLA-OFT and LightVLA publish them, translated into this package's names.

Reads config.json and weight files; decides nothing that the weights cannot tell (that is the contract's).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from lightvla_core import lora
from lightvla_core.contract import OPENVLA_PROMPT, VICUNA_PROMPT, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.folders import CONFIG_FILE, read_json, require_folder
from lightvla_core.model.config import (
    DINOV2_LARGE,
    SIGLIP_SO400M,
    LlamaConfig,
    ModelConfig,
    TokenConfig,
    TowerConfig,
)
from lightvla_core.model.vision import tower_depth
from lightvla_core.weights import NamedTensor, StoredTensor, has_weights, list_tensors, list_weights

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
# What vision_backbone_id stands for, where a config does not spell it out: timm ids and image size.
_SIGLIP_384 = "vit_so400m_patch14_siglip_384"
_BACKBONES = {
    "dinosiglip-vit-so-224px": ((DINOV2_LARGE, SIGLIP_SO400M), 224),
    "dinosiglip-vit-so-384px": ((DINOV2_LARGE, _SIGLIP_384), 384),
    "siglip-vit-so400m": ((SIGLIP_SO400M,), 224),
    "siglip-vit-so400m-384px": ((_SIGLIP_384,), 384),
}
_TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
# Parts of published towers that no forward pass reaches, and a buffer that older Llama files carry.
_UNUSED_TOWER_PARTS = ("norm.", "attn_pool.", "fc_norm.", "head.")
_UNUSED_SUFFIX = ".rotary_emb.inv_freq"

MergeAdapter = Literal["auto", "merge", "merged"]


# -- configuration


def read_model_config(folder: Path) -> ModelConfig:
    """Sizes from a published config.json and preprocessor_config.json."""
    require_folder(folder)
    data, preprocessor = read_json(folder / CONFIG_FILE), read_json(folder / PREPROCESSOR_FILE)
    try:
        return _model_config(data, preprocessor)
    except KeyError as error:
        reason = f"it lacks {error}"
    except LightVLAError as error:
        reason = str(error)
    except (TypeError, IndexError, ValueError, AttributeError, ZeroDivisionError) as error:
        reason = f"a value has another form than expected ({error})"
    raise LightVLAError(
        f"{folder / CONFIG_FILE}, with {PREPROCESSOR_FILE}, is not an OpenVLA-like configuration: {reason}"
    )


def read_prompt(folder: Path) -> tuple[str, str]:
    """The prompt of training, and why; read_model_config has read the same configuration."""
    backbone = str(read_json(folder / CONFIG_FILE).get("llm_backbone_id", ""))
    if backbone.startswith("vicuna"):
        return VICUNA_PROMPT, f"llm_backbone_id is {backbone}, a chat model"
    return OPENVLA_PROMPT, "OpenVLA's"


def _model_config(data: dict[str, Any], preprocessor: dict[str, Any]) -> ModelConfig:
    if "timm_model_ids" in data:
        timm_ids, sizes = data["timm_model_ids"], data["image_sizes"]
    else:
        timm_ids, size = _known_backbone(data["vision_backbone_id"])
        sizes = [size] * len(timm_ids)
    _check_options(data, len(timm_ids))
    overrides = data.get("tiny_vit_overrides", {})
    towers = tuple(
        TowerConfig(
            timm_id,
            size,
            mean=tuple(preprocessor["means"][i]),
            std=tuple(preprocessor["stds"][i]),
            **overrides.get(timm_id, {}),
        )
        for i, (timm_id, size) in enumerate(zip(timm_ids, sizes, strict=True))
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


def _known_backbone(backbone: Any) -> tuple[tuple[str, ...], int]:
    """timm ids and image size"""
    if backbone not in _BACKBONES:
        raise LightVLAError(f"vision_backbone_id is {backbone!r}; known are {', '.join(_BACKBONES)}")
    return _BACKBONES[backbone]


def _check_options(data: dict[str, Any], towers: int) -> None:
    """Raises LightVLAError for what would make other features of the same weights."""
    fused = data.get("use_fused_vision_backbone")
    if fused is not None and fused != (towers > 1):
        raise LightVLAError(f"use_fused_vision_backbone is {fused!r}, but it lists {towers} vision towers")
    for activation in data.get("timm_override_act_layers") or ():
        if activation not in (None, "gelu"):
            raise LightVLAError(f"timm_override_act_layers asks for {activation!r}; supported is gelu, the towers' own")
    resize = data.get("image_resize_strategy", "resize-naive")
    if resize != "resize-naive":
        raise LightVLAError(f"image_resize_strategy is {resize!r}; supported is resize-naive")


# -- weights


def read_tensors(folder: Path, contract: PolicyContract, vision_folder: Path | None = None) -> Iterator[NamedTensor]:
    """All tensors that a model of this contract has, under this package's names, read one at a time.

    vision_folder: where to look for a vision_backbone side file instead (it replaces the whole backbone)
    """
    for tensor in list_model_tensors(folder, contract, vision_folder):
        yield tensor.read()


def list_model_tensors(
    folder: Path,
    contract: PolicyContract,
    vision_folder: Path | None = None,
    adapter: lora.Adapter | None = None,
) -> list[StoredTensor]:
    """What read_tensors reads, unread. adapter: is merged into the base weights, before side files replace any"""
    side = {name: find_side_file(folder, name) for name in _wanted_side_files(contract)}
    if vision_folder is not None:
        side["vision_backbone"] = find_side_file(vision_folder, "vision_backbone")
    tensors = list_weights(folder)
    if "vision_backbone" in side:
        tensors = [tensor for tensor in tensors if not tensor.name.startswith("vision_backbone.")]
    if adapter is not None:
        replaced = "vision_backbone" in side
        tensors = lora.merge(adapter.only(lambda name: not (replaced and name.startswith("vision_backbone."))), tensors)
    for part, path in side.items():
        tensors += [dataclasses.replace(tensor, name=SIDE_FILES[part] + tensor.name) for tensor in list_side_file(path)]
    unused = unused_weights(read_model_config(folder))
    return [dataclasses.replace(t, name=rename(t.name)) for t in tensors if not unused(t.name)]


def refuse_lone_adapter(folder: Path) -> None:
    """Raises LightVLAError where there is an adapter but not the weights that it changes."""
    if not has_weights(folder) and ((folder / lora.FOLDER).is_dir() or (folder / lora.CONFIG_FILE).is_file()):
        raise LightVLAError(
            f"{folder} holds an adapter but not the weights it changes; merge it into its base model with "
            f"`lightvla merge-lora BASE {folder} NEW` and import NEW"
        )


def find_adapter(folder: Path, choice: MergeAdapter = "auto") -> tuple[lora.Adapter | None, str]:
    """The adapter in lora_adapter/ that is still to be merged, None if there is none, and the reason.

    choice: `merge`, `merged` (it is in the weights already, as the published training leaves it), or `auto`: the
        weights tell, by how much of the update they contain
    """
    path = folder / lora.FOLDER
    if not path.is_dir():
        return None, f"no {lora.FOLDER}/"
    adapter = lora.read_adapter(path)
    if choice != "auto":
        return (adapter, "as asked for") if choice == "merge" else (None, "left alone, as asked for")
    share = lora.share_contained(adapter, list_weights(folder))
    if share is None:
        return None, "it changes nothing"
    if 0.25 < share < 0.75:
        raise LightVLAError(
            f"whether the weights of {folder} contain {lora.FOLDER}/ already is unclear (they contain {share:.0%} of "
            "it); say --adapter merge or --adapter merged"
        )
    contained = f"the weights contain {share:.0%} of its update"
    return (None, f"{contained}: merged already") if share >= 0.75 else (adapter, f"{contained}: not merged yet")


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


def find_side_files(folder: Path, part: str) -> list[Path]:
    """Every file whose name holds part and "checkpoint", as the published loader looks for it."""
    return sorted(p for p in folder.iterdir() if p.is_file() and part in p.name and "checkpoint" in p.name)


def find_side_file(folder: Path, part: str) -> Path:
    """The one file of this part."""
    found = find_side_files(folder, part)
    if len(found) != 1:
        what = "none" if not found else ", ".join(p.name for p in found)
        raise LightVLAError(f"{folder} should hold exactly one {part}--N_checkpoint.pt, found {what}")
    return found[0]


def list_side_file(path: Path) -> list[StoredTensor]:
    """A side file's tensors, without the prefix of data-parallel training, its low-rank updates merged on loading."""
    tensors = [dataclasses.replace(tensor, name=tensor.name.removeprefix("module.")) for tensor in list_tensors(path)]
    factors = [tensor for tensor in tensors if ".lora_" in tensor.name]
    # The published fine-tuning sets lora_alpha to min(rank, 16).
    updates = lora.pair_factors(factors, lambda rank: min(rank, 16) / rank)
    plain = [
        dataclasses.replace(tensor, name=tensor.name.replace(".base_layer.", "."))
        for tensor in tensors
        if ".lora_" not in tensor.name
    ]
    return lora.merge(lora.Adapter(path.parent, updates), plain)


def unused_weights(config: ModelConfig) -> Callable[[str], bool]:
    """Tells of a published tensor's name whether no forward pass reaches it, so that it is not kept."""
    last_blocks = {
        prefix: f"blocks.{tower_depth(tower) - 1}." for prefix, tower in zip(_TOWERS, config.towers, strict=False)
    }

    def is_unused(name: str) -> bool:
        for prefix, last_block in last_blocks.items():
            if name.startswith(prefix):
                return name.removeprefix(prefix).startswith((*_UNUSED_TOWER_PARTS, last_block))
        return name.endswith(_UNUSED_SUFFIX)

    return is_unused


def rename(name: str) -> str:
    """LayerScale's parameter is called gamma in timm, scale_factor in published files."""
    return name.removesuffix("scale_factor") + "gamma" if name.endswith(".scale_factor") else name
