"""Greedy generation with a key-value cache: how causal models (OpenVLA) write their actions, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightvla_core.model.llama import KeyValueCache

if TYPE_CHECKING:
    from lightvla_core.model.vla import LightVLA


def generate(model: LightVLA, ids: Tensor, mask: Tensor, patches: Tensor | None, count: int) -> Tensor:
    """Continue each prompt by count tokens, each the likeliest of the whole vocabulary: int64 (batch, count)

    ids, mask, patches: as in LightVLA.forward; prompts may differ in length
    """
    cache = KeyValueCache(model.config.llama)
    logits = model(ids, mask, patches, cache)
    assert cache.mask is not None
    last = cache.mask.sum(dim=1) - 1
    token = torch.take_along_dim(logits, last[:, None, None], dim=1).argmax(dim=-1)
    tokens = [token]
    for _ in range(count - 1):
        token = model(token, torch.ones_like(token, dtype=torch.bool), cache=cache).argmax(dim=-1)
        tokens.append(token)
    return torch.cat(tokens, dim=1)
