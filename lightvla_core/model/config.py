"""Sizes of the network. What a checkpoint is for (cameras, actions, head, pruning) is the contract's matter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lightvla_core.errors import LightVLAError

DINOV2_LARGE = "vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP_SO400M = "vit_so400m_patch14_siglip_224"


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer, by its timm id; embed_dim, depth and num_heads override the id's own where set.

    mean, std: of the image normalisation, for values in [0, 1]
    """

    timm_id: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the language model. The defaults that published configs leave out are Llama's class defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class TokenConfig:
    """Ids with a meaning of their own.

    empty: the lone word-start piece that the Llama tokenizer leaves between "Out:" and the action tokens
    action_end: one past the last action token; the num_bins ids before it stand for the action bins, in reverse
    """

    bos: int = 1
    stop: int = 2
    empty: int = 29871
    pad: int = 32000
    action_end: int = 32000
    num_bins: int = 256


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of the weights, except what the contract says."""

    towers: tuple[TowerConfig, ...]
    llama: LlamaConfig
    tokens: TokenConfig = field(default_factory=TokenConfig)

    def __post_init__(self) -> None:
        if len(self.towers) not in (1, 2):
            raise LightVLAError(f"a model has one or two vision towers, but the configuration lists {len(self.towers)}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str) -> ModelConfig:
        """Rebuild from to_dict's output; raises LightVLAError naming source when a field is missing or unknown."""
        try:
            return cls(
                towers=tuple(
                    TowerConfig(**{**tower, "mean": tuple(tower["mean"]), "std": tuple(tower["std"])})
                    for tower in data["towers"]
                ),
                llama=LlamaConfig(**data["llama"]),
                tokens=TokenConfig(**data["tokens"]),
            )
        except (KeyError, TypeError) as error:
            raise LightVLAError(
                f"{source} does not describe a model: {error}; expected a model configuration"
            ) from None
