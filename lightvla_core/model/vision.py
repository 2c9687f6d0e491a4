"""The vision backbone: one or two timm vision transformers over the same images, and their projector."""

from __future__ import annotations

from typing import cast

import timm
import torch
from torch import Tensor, nn

from lightvla_core.errors import LightVLAError
from lightvla_core.model.config import TowerConfig


class FilmBlock(nn.Module):
    """A transformer block whose attention output is scaled and shifted by the language vector (FiLM, OpenVLA-OFT).

    The modulation acts on every token, class and register tokens included, between attention and MLP.
    """

    def __init__(self, block: nn.Module, vision_dim: int, language_dim: int) -> None:
        super().__init__()
        self.block = block
        self.scale = nn.Linear(language_dim, vision_dim)
        self.shift = nn.Linear(language_dim, vision_dim)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        """x (batch, tokens, vision), language (batch, language) -> (batch, tokens, vision)"""
        block = self.block
        x = x + block.ls1(block.attn(block.norm1(x)))  # type: ignore[operator]
        x = x * (1 + self.scale(language).unsqueeze(1)) + self.shift(language).unsqueeze(1)
        return cast(Tensor, x + block.ls2(block.mlp(block.norm2(x))))  # type: ignore[operator]


def build_tower(config: TowerConfig) -> nn.Module:
    """A timm vision transformer reduced to what the policy reads: the patch tokens of the last block but one.

    The published features stop there, before the final norm; the last block is therefore not built at all.
    Raises LightVLAError for sizes that do not go together.
    """
    overrides = {
        key: value for key in ("embed_dim", "depth", "num_heads") if (value := getattr(config, key)) is not None
    }
    try:
        tower = timm.create_model(
            config.timm_id, pretrained=False, num_classes=0, global_pool="", img_size=config.image_size, **overrides
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise LightVLAError(f"the vision tower {config.timm_id} cannot be built as configured ({reason})") from None
    tower.blocks = tower.blocks[:-1]
    tower.norm = nn.Identity()
    return cast(nn.Module, tower)


def tower_depth(config: TowerConfig) -> int:
    """Blocks of the whole tower, the last one included."""
    with torch.device("meta"):
        return config.depth or 1 + len(cast(nn.Sequential, build_tower(config).blocks))


def run_tower(tower: nn.Module, images: Tensor, language: Tensor | None) -> Tensor:
    """images (batch, 3, height, width) normalised -> (batch, patches, embed_dim)"""
    x = tower.norm_pre(tower._pos_embed(tower.patch_embed(images)))  # type: ignore[operator]
    for block in cast(nn.Sequential, tower.blocks):
        x = block(x) if language is None else block(x, language)
    return cast(Tensor, x[:, tower.num_prefix_tokens :])


class VisionBackbone(nn.Module):
    """Fused towers. Of each image's channels, three go to each tower in turn (DINOv2 first, then SigLIP);
    features are concatenated on the last axis, images on the token axis.
    """

    def __init__(self, towers: tuple[TowerConfig, ...], film_language_dim: int | None = None) -> None:
        """film_language_dim: size of the language vector, or None without FiLM"""
        super().__init__()
        self.featurizer = build_tower(towers[0])
        self.fused_featurizer = build_tower(towers[1]) if len(towers) > 1 else None
        if film_language_dim is not None:
            for tower in self.towers:
                width = cast(int, tower.embed_dim)
                blocks = cast(nn.Sequential, tower.blocks)
                tower.blocks = nn.ModuleList(FilmBlock(block, width, film_language_dim) for block in blocks)

    @property
    def towers(self) -> list[nn.Module]:
        return [self.featurizer] + ([self.fused_featurizer] if self.fused_featurizer is not None else [])

    @property
    def embed_dim(self) -> int:
        return sum(cast(int, tower.embed_dim) for tower in self.towers)

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns of one image."""
        rows, columns = self.featurizer.patch_embed.grid_size  # type: ignore[union-attr, misc]
        return int(rows), int(columns)

    def forward(self, pixels: Tensor, language: Tensor | None = None) -> Tensor:
        """pixels (batch, images * towers * 3, height, width), language (batch, language) with FiLM
        -> (batch, images * patches, embed_dim)

        All images pass through a tower as one batch.
        """
        towers = self.towers
        batch, channels, height, width = pixels.shape
        images = channels // (3 * len(towers))
        per_tower = pixels.reshape(batch * images, len(towers), 3, height, width).unbind(1)
        if language is not None:
            language = language.repeat_interleave(images, dim=0)
        features = [run_tower(tower, x, language) for tower, x in zip(towers, per_tower, strict=True)]
        return torch.cat(features, dim=-1).reshape(batch, -1, self.embed_dim)


class Projector(nn.Module):
    """Vision features to language embeddings: three layers for fused towers, two for a single one."""

    def __init__(self, vision_dim: int, hidden_size: int, fused: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim if fused else hidden_size)
        self.fc2 = nn.Linear(self.fc1.out_features, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size) if fused else None
        self.act = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        """(batch, patches, vision) -> (batch, patches, hidden)"""
        x = self.fc2(self.act(self.fc1(features)))
        return cast(Tensor, x if self.fc3 is None else self.fc3(self.act(x)))
