"""The token pruner: which image patches stay. No parameters, no knowledge of the language model (LightVLA).

Every patch, as a query that has looked at the task tokens, votes for the patch that can stand for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightvla_core.model.llama import rms_normalize


@dataclass(frozen=True)
class Attention:
    """What each patch sees in some task tokens, kept so that the views of two sets of tokens merge exactly.

    log_weight (batch, patches, 1): log of the sum of the softmax's exponentials
    mean (batch, patches, hidden): the task tokens under that softmax
    Both are float32 at least: logits reach √hidden, where bfloat16 has steps of a quarter.
    """

    log_weight: Tensor
    mean: Tensor

    def merge(self, other: Attention) -> Attention:
        """What a patch sees in the tokens of both."""
        share = torch.sigmoid(other.log_weight - self.log_weight)
        return Attention(torch.logaddexp(self.log_weight, other.log_weight), self.mean.lerp(other.mean, share))


def attend(patches: Tensor, task: Tensor, task_mask: Tensor | None = None) -> Attention:
    """patches (batch, patches, hidden) already RMS-normalised, task and task_mask as in score"""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    task = rms_normalize(task).to(dtype)
    logits = patches.to(dtype) @ task.transpose(1, 2) / math.sqrt(patches.shape[-1])
    if task_mask is not None:
        logits = logits.masked_fill(~task_mask[:, None, :], -math.inf)
    return Attention(logits.logsumexp(-1, keepdim=True), logits.softmax(-1) @ task)


def score(patches: Tensor, task: Tensor, task_mask: Tensor | None = None) -> Tensor:
    """Row i: how well each patch can stand for patch i, given the task.

    patches (batch, patches, hidden), task (batch, task tokens, hidden), task_mask bool (batch, task tokens), False
    where a task token is padding and takes no part -> (batch, patches, patches)
    """
    keys = rms_normalize(patches)
    return _score(keys, attend(keys, task, task_mask))


def _score(keys: Tensor, attention: Attention) -> Tensor:
    queries = rms_normalize(attention.mean.to(keys.dtype))
    return queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])


class RepeatedScore:
    """score() again and again while a few task tokens change: the rest is attended to once (diffusion)."""

    def __init__(self, patches: Tensor, task: Tensor, constant: Tensor) -> None:
        """patches, task as in score; constant bool (batch, task tokens), True on the tokens that stay and take part"""
        self._keys = rms_normalize(patches)
        self._constant = attend(self._keys, task, constant)

    def __call__(self, changing: Tensor) -> Tensor:
        """The tokens that change (batch, changing, hidden) -> (batch, patches, patches)"""
        return _score(self._keys, self._constant.merge(attend(self._keys, changing)))


def count_votes(score: Tensor) -> Tensor:
    """(batch, patches, patches) -> int64 (batch, patches): how many rows chose each patch; 0 means dropped"""
    choice = score.argmax(dim=-1)
    return torch.zeros_like(choice).scatter_add_(1, choice, torch.ones_like(choice))


@dataclass(frozen=True)
class Selection:
    """The patches that enter the language model, one row a token.

    patches (batch, kept, hidden); positions int64 (batch, kept): their place among all patches
    key_bias (batch, kept): -inf for a row that is padding, log(votes) where votes count; None where neither occurs
    """

    patches: Tensor
    positions: Tensor
    key_bias: Tensor | None


def keep_voted(patches: Tensor, votes: Tensor, weighted: bool) -> Selection:
    """The patches with at least one vote, in ascending order; samples with fewer are padded to the longest.

    weighted: a patch with m votes counts m times as a key. m equal tokens at one position and one token whose
        logit is raised by log m give the same attention, so this equals the sequence seen in training.
    """
    kept = votes > 0
    counts = kept.sum(dim=1)
    longest = int(counts.max())
    # A stable sort of "dropped" puts the kept patches first and leaves their order alone.
    positions = torch.sort((~kept).to(torch.uint8), dim=1, stable=True).indices[:, :longest]
    rows = torch.take_along_dim(patches, positions[..., None], dim=1)
    padding = torch.arange(longest, device=patches.device) >= counts[:, None]
    if weighted:
        bias = torch.take_along_dim(votes, positions, dim=1).to(patches.dtype).log()  # log 0 = -inf hides the padding
    elif bool(padding.any()):
        bias = torch.zeros_like(padding, dtype=patches.dtype).masked_fill(padding, -math.inf)
    else:
        bias = None
    return Selection(rows, positions, bias)


def keep_all(patches: Tensor) -> Selection:
    """No pruning (OpenVLA-OFT)."""
    batch, count, _ = patches.shape
    return Selection(patches, torch.arange(count, device=patches.device).expand(batch, count), None)


def replace_by_choice(patches: Tensor, score: Tensor, noise: Tensor | None = None) -> Selection:
    """Training: every row stays and becomes the patch it voted for; the gradient is the softmax's (straight-through).

    noise (batch, patches, patches): added to the score before both the vote and the softmax
    """
    noisy = score if noise is None else score + noise
    choice = noisy.argmax(dim=-1)
    soft = noisy.softmax(dim=-1)
    hard = F.one_hot(choice, patches.shape[1]).to(soft.dtype)
    return Selection((hard + soft - soft.detach()) @ patches, choice, None)
