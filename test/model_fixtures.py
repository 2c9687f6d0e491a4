"""Small random models and inputs of any kind, for the tests of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightvla_core.contract import Camera, Channel, PolicyContract, Pruning
from lightvla_core.model.config import DINOV2_LARGE, SIGLIP_SO400M, LlamaConfig, ModelConfig, TokenConfig, TowerConfig
from lightvla_core.model.sequence import TextInput
from lightvla_core.model.vla import LightVLA
from lightvla_core.presets import random_model

# Threads only cost time at these sizes.
torch.set_num_threads(1)

TOKENS = TokenConfig(bos=1, stop=2, empty=3, pad=96, action_end=96, num_bins=32)
_HALF = (0.5, 0.5, 0.5)


def tower(timm_id: str = SIGLIP_SO400M, image_size: int = 42, embed_dim: int = 24) -> TowerConfig:
    return TowerConfig(timm_id, image_size, _HALF, _HALF, embed_dim=embed_dim, depth=3, num_heads=2)


FUSED = (tower(DINOV2_LARGE), tower(SIGLIP_SO400M))


def make_model(
    towers: tuple[TowerConfig, ...] = FUSED,
    images: int = 2,
    proprio: int = 3,
    action_dim: int = 2,
    chunk: int = 3,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    **contract: Any,
) -> LightVLA:
    """contract: fields of PolicyContract other than names and sizes"""
    llama = LlamaConfig(
        vocab_size=112,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=hidden // 4,
    )
    size = towers[0].image_size
    fields: dict[str, Any] = {
        "robot": "test",
        "cameras": tuple(Camera(f"camera_{i}", size, size) for i in range(images)),
        "proprioception": _channels(proprio),
        "actions": _channels(action_dim),
        "action_space": "joint_position",
        "chunk_length": chunk,
        "control_rate": 10.0,
        "normalization": "bounds",
        "statistics_key": "test",
        "pruning": Pruning(multiplicity="weighted"),
    }
    return random_model(ModelConfig(towers, llama, TOKENS), PolicyContract(**{**fields, **contract}), seed)


def make_causal_model(**fields: Any) -> LightVLA:
    """As original OpenVLA checkpoints: one image, one action, written token by token."""
    openvla = {"images": 1, "proprio": 0, "action_dim": 7, "chunk": 1}
    return make_model(
        **{**openvla, **fields}, attention="causal", action_head="discrete", pruning=Pruning(enabled=False)
    )


def _channels(count: int) -> tuple[Channel, ...]:
    return tuple(Channel(f"channel_{i}", "normalized") for i in range(count))


def draw_pixels(model: LightVLA, batch: int, seed: int = 0) -> Tensor:
    size, channels = model.config.towers[0].image_size, 3 * len(model.config.towers)
    shape = (batch, len(model.contract.cameras) * channels, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_proprio(model: LightVLA, batch: int, seed: int = 1) -> Tensor | None:
    size = len(model.contract.proprioception)
    return torch.rand(batch, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1 if size else None


def draw_noise(model: LightVLA, batch: int, seed: int = 2) -> Tensor:
    shape = (batch, model.contract.chunk_length, len(model.contract.actions))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_text(model: LightVLA, lengths: list[int], seed: int = 3) -> TextInput:
    """Prompts of these lengths, each with what the contract's attention wants behind it."""
    generator = torch.Generator().manual_seed(seed)
    ending: list[int] = []
    if model.contract.attention == "bidirectional":
        ending = [1] * model.contract.chunk_length * len(model.contract.actions) + [TOKENS.stop]
    ids = torch.full((len(lengths), max(lengths) + len(ending)), TOKENS.pad)
    mask, slots = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        words = torch.randint(4, TOKENS.action_end - TOKENS.num_bins, (length - 2,), generator=generator).tolist()
        end = length + len(ending)
        ids[row, :end] = torch.tensor([TOKENS.bos, *words, TOKENS.empty, *ending])
        mask[row, :end] = True
        slots[row, length : end - 1] = True
    return TextInput(ids, mask, slots)


def row(text: TextInput, index: int) -> TextInput:
    """One prompt alone, without its padding."""
    length = int(text.mask[index].sum())
    return TextInput(*(tensor[index : index + 1, :length] for tensor in (text.ids, text.mask, text.slots)))


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest absolute error by the largest absolute reference value."""
    return float((value - reference).abs().max() / reference.abs().max())
