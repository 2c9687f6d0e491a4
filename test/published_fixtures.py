"""Small random checkpoints in the forms that OpenVLA, OpenVLA-OFT and LightVLA publish, and the weights in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightvla_core.contract import Camera, Channel, PolicyContract, Pruning
from lightvla_core.model.config import DINOV2_LARGE, SIGLIP_SO400M
from lightvla_core.presets import random_weights, tiny_tokenizer
from lightvla_core.published import read_model_config

FUSED_224 = (DINOV2_LARGE, SIGLIP_SO400M)
FUSED_384 = (DINOV2_LARGE, "vit_so400m_patch14_siglip_384")
SIGLIP_ONLY = (SIGLIP_SO400M,)
SIGLIP_ONLY_384 = ("vit_so400m_patch14_siglip_384",)

TOWER = {"embed_dim": 24, "depth": 3, "num_heads": 2}
ROBOTS = {"libero": (7, 8, 8), "aloha": (14, 14, 25), "bridge": (7, 7, 5)}  # actions, proprioception, chunk
SIDE = {"action_head", "noisy_action_projector", "proprio_projector"}


@dataclass(frozen=True)
class Published:
    """A checkpoint folder and what a model read from it should hold, under this package's names."""

    folder: Path
    weights: dict[str, Tensor]


def write_published(
    folder: Path,
    robot: str = "libero",
    head: str = "l1",
    proprio: bool = True,
    film: bool = False,
    towers: tuple[str, ...] = FUSED_224,
    image_size: int = 56,
    form: str = "safetensors",
    prefix: str = "module.",
    dtype: torch.dtype = torch.float32,
    text: dict[str, int] | None = None,
) -> Published:
    """form: safetensors, sharded_safetensors, bin or sharded_bin; prefix: on the names in side files"""
    folder.mkdir(parents=True)
    write_configuration(folder, robot, towers, image_size, text or {})
    contract = _contract(robot, head, proprio, film, image_size)
    weights = {
        name: tensor.to(dtype) for name, tensor in random_weights(read_model_config(folder), contract, seed=0).items()
    }
    named = {_published_name(name): tensor for name, tensor in weights.items()}
    base = {n: t for n, t in named.items() if n.split(".")[0] not in SIDE}
    if film:
        vision = {n: t for n, t in base.items() if n.startswith("vision_backbone.")}
        torch.save(vision, folder / "vision_backbone--150000_checkpoint.pt")
        # The file replaces the whole backbone: what the base holds of it must not matter.
        base = {n: t for n, t in base.items() if n not in vision}
        base |= {
            n.replace(".block.", "."): t + 1 for n, t in vision.items() if ".scale." not in n and ".shift." not in n
        }
    for part in SIDE & {name.split(".")[0] for name in named}:
        state = {prefix + n.removeprefix(f"{part}."): t for n, t in named.items() if n.startswith(f"{part}.")}
        torch.save(state, folder / f"{part}--150000_checkpoint.pt")
    save_weights(folder, base | _unused(dtype, towers), form)
    return Published(folder, weights)


def write_configuration(
    folder: Path, robot: str, towers: tuple[str, ...], image_size: int, text: dict[str, int]
) -> None:
    """Everything but weights: config, preprocessor, statistics, tokenizer."""
    config = {
        "model_type": "openvla",
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "timm_model_ids": towers,
        "image_sizes": [image_size] * len(towers),
        "use_fused_vision_backbone": len(towers) > 1,
        "pad_token_id": 1024,
        "text_config": {
            "vocab_size": 1088,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            **text,
        },
        "tiny_vit_overrides": dict.fromkeys(towers, TOWER),
    }
    values = [[0.5] * 3 for _ in towers]
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {"means": values, "stds": values})
    write_json(folder / "dataset_statistics.json", {f"{robot}_task": statistics(robot)})
    (folder / "tokenizer.json").write_text(tiny_tokenizer().to_str())


def statistics(robot: str) -> dict[str, Any]:
    actions, proprio, _ = ROBOTS[robot]
    return {
        part: {"q01": [-1.0] * n, "q99": [1.0] * n, "min": [-2.0] * n, "max": [2.0] * n}
        for part, n in (("action", actions), ("proprio", proprio))
    }


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def save_weights(folder: Path, tensors: dict[str, Tensor], form: str = "safetensors") -> None:
    """One file, or three shards with their index."""
    names = sorted(tensors)
    parts = [names[i::3] for i in range(3)] if form.startswith("sharded") else [names]
    stem, suffix = ("pytorch_model", "bin") if form.endswith("bin") else ("model", "safetensors")
    weight_map = {}
    for i, part in enumerate(parts, 1):
        file = f"{stem}-{i:05d}-of-00003.{suffix}" if len(parts) > 1 else f"{stem}.{suffix}"
        state = {name: tensors[name].contiguous() for name in part}
        torch.save(state, folder / file) if suffix == "bin" else save_file(state, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if len(parts) > 1:
        write_json(folder / f"{stem}.{suffix}.index.json", {"weight_map": weight_map})


def _published_name(name: str) -> str:
    return name.removesuffix("gamma") + "scale_factor" if name.endswith(".gamma") else name


def _unused(dtype: torch.dtype, towers: tuple[str, ...]) -> dict[str, Tensor]:
    """What published files hold beside: the last block, the final norm, the pooling head."""
    names = ["featurizer.norm.weight", "featurizer.blocks.2.norm1.weight"]
    if len(towers) > 1:
        names += ["fused_featurizer.attn_pool.latent", "fused_featurizer.blocks.2.mlp.fc1.bias"]
    return {f"vision_backbone.{name}": torch.ones(24, dtype=dtype) for name in names}


def _contract(robot: str, head: str, proprio: bool, film: bool, image_size: int) -> PolicyContract:
    actions, proprio_dim, chunk = ROBOTS[robot]
    return PolicyContract(
        robot=robot,
        cameras=(Camera("a", image_size, image_size),),
        proprioception=_channels(proprio_dim if proprio else 0),
        actions=_channels(actions),
        action_space="joint_position",
        chunk_length=chunk,
        control_rate=1.0,
        normalization="bounds",
        statistics_key="any",
        action_head=head,  # type: ignore[arg-type]
        film=film,
        pruning=Pruning(enabled=False),
    )


def _channels(count: int) -> tuple[Channel, ...]:
    return tuple(Channel(f"c{i}", "normalized") for i in range(count))
