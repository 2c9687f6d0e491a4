"""Llama, with attention that sees the whole sequence or, where causal, what came before. Embeddings in, hidden states
out; no sampling, no text.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightvla_core.model.config import LlamaConfig


class RMSNorm(nn.Module):
    """Normalised in float32, cast back, then weighted."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * rms_normalize(x, self.eps)


def rms_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last axis, computed in float32. Written out, since some ONNX exporters lack the operator."""
    x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class LayerCache:
    """Keys and values that one layer has computed so far, (batch, heads, seen, head_dim)."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take those of new tokens, give those of all."""
        if self._seen is not None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self._seen, (keys, values), strict=True))
        self._seen = keys, values
        return self._seen


class KeyValueCache:
    """What a causal model has seen. Every forward pass that it is handed to appends to it.

    mask bool (batch, seen), False on padding; None before the first pass
    """

    def __init__(self, config: LlamaConfig) -> None:
        self.layers = [LayerCache() for _ in range(config.num_layers)]
        self.mask: Tensor | None = None

    def append(self, mask: Tensor) -> Tensor:
        """mask (batch, new) -> that of all tokens (batch, seen)"""
        self.mask = mask if self.mask is None else torch.cat((self.mask, mask), dim=1)
        return self.mask


class Attention(nn.Module):
    """Multi-head attention with rotary positions, grouped keys and values where the configuration has them."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.num_kv_heads != config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: Tensor, bias: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=self.grouped)
        return cast(Tensor, self.o_proj(y.transpose(1, 2).flatten(-2)))


class MLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Tensor, bias: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, bias, cache)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class LlamaModel(nn.Module):
    """The stack of blocks between token embeddings and the final norm."""

    def __init__(self, config: LlamaConfig, pad_token: int | None, causal: bool = False) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=pad_token)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        key_bias: Tensor | None = None,
        layer_outputs: list[Tensor] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """embeddings (batch, length, hidden), positions int64 (batch, length) -> (batch, length, hidden)

        key_bias: (batch, keys), added to each token's attention logit as a key: -inf hides it, log m counts it
            m times; None where every key counts once. With a cache it is needed and covers the cached keys too
        layer_outputs: receives the embeddings and each block's output, the last one after the final norm
        cache: of the tokens before these, to which these are appended
        """
        rope = rope_table(positions, self.config, embeddings.dtype)
        bias = None if key_bias is None else key_bias[:, None, None, :].to(embeddings.dtype)
        if self.causal:
            future = _hide_future(embeddings, keys=embeddings.shape[1] if bias is None else bias.shape[-1])
            bias = future if bias is None else bias + future
        x = embeddings
        for i, layer in enumerate(self.layers):
            if layer_outputs is not None:
                layer_outputs.append(x)
            x = layer(x, rope, bias, None if cache is None else cache.layers[i])
        x = cast(Tensor, self.norm(x))
        if layer_outputs is not None:
            layer_outputs.append(x)
        return x


class Llama(nn.Module):
    """LlamaModel with its vocabulary head; named as published checkpoints name it."""

    def __init__(self, config: LlamaConfig, pad_token: int | None, causal: bool = False) -> None:
        super().__init__()
        self.model = LlamaModel(config, pad_token, causal)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def _hide_future(queries: Tensor, keys: int) -> Tensor:
    """(queries, keys) to add to logits: -inf where a key stands behind its query. The last query sees every key."""
    count = queries.shape[1]
    return queries.new_full((count, keys), -math.inf).triu(keys - count + 1)


def rope_table(positions: Tensor, config: LlamaConfig, dtype: torch.dtype) -> Tensor:
    """positions (batch, length) -> (2, batch, 1, length, head_dim): cosine and sine, computed in float32"""
    steps = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * config.rope_theta ** (-steps / config.head_dim)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the first half of head_dim against the second. x (batch, heads, length, head_dim)"""
    first, second = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat((-second, first), dim=-1) * rope[1]
