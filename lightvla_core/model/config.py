"""Sizes of the network. What a checkpoint is for (cameras, actions, head, pruning) is the contract's matter."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from timm.models import is_model_in_modules

from lightvla_core.errors import LightVLAError

DINOV2_LARGE = "vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP_SO400M = "vit_so400m_patch14_siglip_224"
_LARGEST = 1 << 20  # of any size; products still fit a tensor


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise LightVLAError(sentence)


def _require_counts(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        known = type(value) is int and 1 <= value <= _LARGEST
        _require(known, f"{name} should be a whole number from 1 to {_LARGEST}, but is {value!r}")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


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

    def __post_init__(self) -> None:
        # A colon would make timm look elsewhere: on the network, or in a folder.
        _require(
            isinstance(self.timm_id, str)
            and ":" not in self.timm_id
            and is_model_in_modules(self.timm_id, ("vision_transformer",)),
            f"the vision tower {self.timm_id!r} is no vision transformer that timm knows",
        )
        set_names = (name for name in ("embed_dim", "depth", "num_heads") if getattr(self, name) is not None)
        _require_counts(self, "image_size", *set_names)
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = len(values) == 3 and all(type(v) in (int, float) and math.isfinite(v) for v in values)
            _require(numbers, f"{name} of {self.timm_id} should be three numbers, but is {values!r}")
        _require(min(self.std) > 0, f"std of {self.timm_id} should be positive, but is {self.std!r}")


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

    def __post_init__(self) -> None:
        counts = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        _require_counts(self, *counts, "head_dim")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} should be a multiple of num_kv_heads {self.num_kv_heads}",
        )
        _require(self.head_dim % 2 == 0, f"head_dim should be even, but is {self.head_dim}")
        for name, value in (("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)):
            _require(_is_positive(value), f"{name} should be a positive number, but is {value!r}")


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

    def __post_init__(self) -> None:
        _require_counts(self, "bos", "stop", "empty", "pad", "action_end", "num_bins")
        _require(
            2 <= self.num_bins <= self.action_end,
            f"num_bins should be from 2 to action_end {self.action_end}, but is {self.num_bins}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of the weights, except what the contract says."""

    towers: tuple[TowerConfig, ...]
    llama: LlamaConfig
    tokens: TokenConfig = field(default_factory=TokenConfig)

    def __post_init__(self) -> None:
        _require(len(self.towers) in (1, 2), f"a model has one or two vision towers, not {len(self.towers)}")
        sizes = {tower.image_size for tower in self.towers}
        _require(len(sizes) == 1, f"the vision towers should take images of one size, not of {sizes}")
        size = self.llama.vocab_size
        last = max(self.tokens.pad, self.tokens.action_end - 1)
        _require(last < size, f"the token id {last} is beyond the vocabulary of {size}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any, source: str) -> ModelConfig:
        """Rebuild from to_dict's output; raises LightVLAError naming source for a field that is missing or wrong."""
        if not isinstance(data, dict):
            raise LightVLAError(f"{source} does not describe a model: expected a field `model` with its sizes")
        try:
            return cls(
                towers=tuple(
                    TowerConfig(**{**tower, "mean": tuple(tower["mean"]), "std": tuple(tower["std"])})
                    for tower in data["towers"]
                ),
                llama=LlamaConfig(**data["llama"]),
                tokens=TokenConfig(**data["tokens"]),
            )
        except (KeyError, TypeError, LightVLAError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise LightVLAError(f"{source} does not describe a model: {what}") from None
