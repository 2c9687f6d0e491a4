"""The multimodal sequence: which token stands where, before and after pruning. Layout only, no network.

[BOS] [patches] [proprio]? [timestep]? [prompt ... empty] [action slots] [STOP] [padding]
Everything behind the patches is what the pruner calls the task.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightvla_core.contract import Readout
from lightvla_core.model.pruner import Selection

PLACEHOLDER = 1  # the id in the action slots; its embedding is replaced by zeros or noisy actions

# Where each readout finds the state for an action slot, relative to that slot.
_READOUT_OFFSET: dict[Readout, int] = {"preceding": -1, "published_lightvla": 1}


@dataclass(frozen=True)
class TextInput:
    """The words of a batch, right-padded: prompt, action slots and STOP; with causal attention the prompt alone.

    ids int64 (batch, length); mask bool, False on padding; slots bool, True on the action slots (the same number
    in every row)
    """

    ids: Tensor
    mask: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Sequence:
    """The sequence before pruning: bos (batch, 1, hidden), patches, task (batch, task, hidden).

    task_mask bool (batch, task), False on padding
    slot_index int64 (batch, slots): where in the task the action slots stand
    noisy_index int64 (batch, 1 + slots): the timestep token and the slots, all that changes while actions are
        denoised; None without the diffusion head
    """

    bos: Tensor
    patches: Tensor
    task: Tensor
    task_mask: Tensor
    slot_index: Tensor
    noisy_index: Tensor | None

    @property
    def noisy_tokens(self) -> Tensor:
        """(batch, 1 + slots, hidden)"""
        assert self.noisy_index is not None
        return torch.take_along_dim(self.task, self.noisy_index[..., None], dim=1)

    def with_noisy_tokens(self, tokens: Tensor) -> Sequence:
        """tokens (batch, 1 + slots, hidden)"""
        assert self.noisy_index is not None
        index = self.noisy_index[..., None].expand_as(tokens)
        return dataclasses.replace(self, task=self.task.scatter(1, index, tokens))

    def constant_mask(self) -> Tensor:
        """bool (batch, task): False where denoising changes the token"""
        assert self.noisy_index is not None
        return torch.ones_like(self.task_mask).scatter(1, self.noisy_index, False)

    def embeddings(self, selection: Selection | None = None) -> Tensor:
        """(batch, 1 + kept + task, hidden); selection None for all patches"""
        patches = self.patches if selection is None else selection.patches
        return torch.cat((self.bos, patches, self.task), dim=1)

    def positions(self, selection: Selection) -> Tensor:
        """Rotary positions int64 (batch, 1 + kept + task): those of the unpruned sequence, so they have gaps."""
        batch, patches, _ = self.patches.shape
        task = torch.arange(self.task.shape[1], device=self.task.device).expand(batch, -1)
        return torch.cat((task.new_zeros(batch, 1), 1 + selection.positions, 1 + patches + task), dim=1)

    def key_bias(self, selection: Selection) -> Tensor | None:
        """What is added to each token's logit as a key (batch, 1 + kept + task); None where that is zero for all."""
        if selection.key_bias is None and bool(self.task_mask.all()):
            return None
        task = hide_padding(self.task_mask)
        kept = selection.key_bias
        if kept is None:
            kept = task.new_zeros(selection.positions.shape)
        return torch.cat((task.new_zeros(len(task), 1), kept.to(task.dtype), task), dim=1)

    def read_slots(self, hidden: Tensor, readout: Readout) -> Tensor:
        """Of the final states (batch, 1 + kept + task, hidden) those that feed the head: (batch, slots, hidden)"""
        task_start = hidden.shape[1] - self.task.shape[1]
        index = task_start + self.slot_index + _READOUT_OFFSET[readout]
        return torch.take_along_dim(hidden, index[..., None], dim=1)


def hide_padding(mask: Tensor) -> Tensor:
    """mask bool, False on padding -> float32 of the same shape, to add to logits: 0, or -inf on padding"""
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -math.inf)
