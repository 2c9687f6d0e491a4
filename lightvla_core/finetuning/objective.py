"""The loss of one batch, for each action head. No optimiser, no data loading."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lightvla_core.model import diffusion, pruner
from lightvla_core.model.config import TokenConfig
from lightvla_core.model.sequence import Sequence, TextInput
from lightvla_core.model.vla import LightVLA

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Collated samples, right-padded.

    pixels (batch, images * towers * 3, height, width); ids, labels int64 (batch, length), labels IGNORED outside
    the action tokens and STOP; mask bool (batch, length); proprio (batch, proprio_dim) and actions
    (batch, chunk, action_dim), normalised
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    labels: Tensor
    actions: Tensor
    proprio: Tensor | None = None


@dataclass(frozen=True)
class Randomness:
    """What a training step draws, handed in so that a step is a function of its arguments.

    score (batch, patches, patches): added to the pruner's score, already scaled; None for no noise
    actions (batch, chunk, action_dim) and timesteps int64 (batch,): the diffusion head's noise and where it stands
    """

    score: Tensor | None = None
    actions: Tensor | None = None
    timesteps: Tensor | None = None


def action_slots(labels: Tensor, tokens: TokenConfig) -> Tensor:
    """bool, like labels: True on action tokens. STOP and ignored positions are none."""
    return labels >= tokens.action_end - tokens.num_bins


@dataclass(frozen=True)
class Outcome:
    """loss (scalar) and how it came about: the head's output (None for discrete tokens), the final hidden states,
    the sequence before pruning and what the pruner chose.
    """

    loss: Tensor
    output: Tensor | None
    hidden: Tensor
    sequence: Sequence
    selection: pruner.Selection


def compute_loss(model: LightVLA, batch: Batch, randomness: Randomness) -> Outcome:
    """Forward pass and loss: mean absolute error (l1), error of the predicted noise (diffusion), or cross-entropy
    over action tokens and STOP (discrete). Every patch slot is kept, as LightVLA trains.
    """
    text = TextInput(batch.ids, batch.mask, action_slots(batch.labels, model.config.tokens))
    patches = model.embed_images(batch.pixels, text)
    sequence = model.assemble(patches, text, batch.proprio)
    if model.contract.action_head == "diffusion":
        assert randomness.actions is not None
        assert randomness.timesteps is not None
        noisy = diffusion.add_noise(batch.actions, randomness.actions, randomness.timesteps)
        sequence = model.insert_noise(sequence, noisy, randomness.timesteps)
    selection = pruner.keep_all(patches)
    if model.contract.pruning.enabled:
        selection = pruner.replace_by_choice(patches, model.score(sequence), randomness.score)
    hidden = model.run_language_model(sequence, selection)
    if model.contract.action_head == "discrete":
        loss, output = _token_loss(model, hidden, batch.labels), None
    else:
        output = model.actions_from_states(model.read_slots(hidden, sequence))
        if model.contract.action_head == "diffusion":
            assert randomness.actions is not None
            loss = F.mse_loss(output, randomness.actions)
        else:
            loss = F.l1_loss(output, batch.actions)
    return Outcome(loss, output, hidden, sequence, selection)


def _token_loss(model: LightVLA, hidden: Tensor, labels: Tensor) -> Tensor:
    """Each position predicts the next; the labels stand at the end of the sequence."""
    logits = model.language_model.lm_head(hidden[:, -labels.shape[1] : -1])
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
