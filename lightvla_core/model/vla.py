"""The whole policy network: images, numbers and words in one sequence; normalised actions out.

Sequence: [BOS] [patches] [proprio]? [timestep]? [prompt ... empty] [action slots] [STOP] [padding].
Everything behind the patches is what the pruner calls the task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightvla_core.contract import PolicyContract, Readout
from lightvla_core.model import diffusion, pruner
from lightvla_core.model.config import ModelConfig
from lightvla_core.model.heads import DiffusionHead, L1Head, ScalarProjector, decode_actions
from lightvla_core.model.llama import Llama
from lightvla_core.model.pruner import Selection
from lightvla_core.model.vision import Projector, VisionBackbone

# Where each readout finds the state for an action slot, relative to that slot.
READOUT_OFFSET: dict[Readout, int] = {"preceding": -1, "published_lightvla": 1}


@dataclass(frozen=True)
class TextInput:
    """Prompt, action slots and STOP of a batch, right-padded.

    ids int64 (batch, length); mask bool, False on padding; slots bool, True on the action slots (the same number
    in every row)
    """

    ids: Tensor
    mask: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Sequence:
    """The multimodal sequence before pruning: bos (batch, 1, hidden), patches, task (batch, task, hidden).

    task_mask bool (batch, task); slot_index int64 (batch, slots): where in the task the action slots stand
    """

    bos: Tensor
    patches: Tensor
    task: Tensor
    task_mask: Tensor
    slot_index: Tensor

    def embeddings(self) -> Tensor:
        return torch.cat((self.bos, self.patches, self.task), dim=1)


@dataclass(frozen=True)
class Prediction:
    """actions (batch, chunk, action_dim) normalised, float32 or float64; votes int64 (batch, patches), of the last
    denoising step where there are several, None without a pruner
    """

    actions: Tensor
    votes: Tensor | None


class LightVLA(nn.Module):
    """Vision towers, projector, pruner, bidirectional Llama and action head, as the contract wants them."""

    def __init__(self, config: ModelConfig, contract: PolicyContract) -> None:
        super().__init__()
        self.config = config
        self.contract = contract
        hidden = config.llama.hidden_size
        action_dim = len(contract.actions)
        self.vision_backbone = VisionBackbone(config.towers, film_language_dim=hidden if contract.film else None)
        self.projector = Projector(self.vision_backbone.embed_dim, hidden, fused=len(config.towers) > 1)
        self.language_model = Llama(config.llama, config.tokens.pad)
        self.proprio_projector = (
            ScalarProjector(len(contract.proprioception), hidden) if contract.proprioception else None
        )
        head = {"l1": L1Head, "diffusion": DiffusionHead, "discrete": None}[contract.action_head]
        self.action_head = None if head is None else head(hidden, action_dim)
        self.noisy_action_projector = ScalarProjector(1, hidden) if contract.action_head == "diffusion" else None

    # -- the sequence

    def embed_images(self, pixels: Tensor, text: TextInput) -> Tensor:
        """pixels (batch, images * towers * 3, height, width) -> projected patches (batch, patches, hidden)"""
        language = self._language_vector(text) if self.contract.film else None
        return self.projector(self.vision_backbone(pixels, language))  # type: ignore[no-any-return]

    def _language_vector(self, text: TextInput) -> Tensor:
        """The plain mean of the text embeddings outside the action slots: (batch, hidden)"""
        counted = ~text.slots & text.mask if self.contract.pruning.mask_padding else ~text.slots
        weights = counted[..., None].to(self.language_model.lm_head.weight.dtype)
        words: Tensor = self.language_model.model.embed_tokens(text.ids)
        return (words * weights).sum(1) / weights.sum(1)

    def assemble(
        self,
        patches: Tensor,
        text: TextInput,
        proprio: Tensor | None,
        noisy_actions: Tensor | None = None,
        timesteps: Tensor | None = None,
    ) -> Sequence:
        """Put everything in one row. proprio (batch, proprio_dim) normalised; noisy_actions (batch, chunk, action_dim)
        and timesteps (batch,) with the diffusion head, where each noisy number becomes the token of its slot;
        without it the slots are zero.
        """
        words = self.language_model.model.embed_tokens(text.ids)
        words = words * ~text.slots[..., None]
        if noisy_actions is not None:
            assert self.noisy_action_projector is not None
            noisy = self.noisy_action_projector(noisy_actions.flatten(1)[..., None].to(words.dtype))
            words = words.masked_scatter(text.slots[..., None], noisy)
        extra = []
        if self.proprio_projector is not None:
            assert proprio is not None
            extra.append(self.proprio_projector(proprio.to(words.dtype))[:, None])
        if timesteps is not None:
            extra.append(diffusion.embed_timesteps(timesteps, words.shape[-1]).to(words.dtype)[:, None])
        batch = words.shape[0]
        mask = torch.cat((text.mask.new_ones(batch, len(extra)), text.mask[:, 1:]), dim=1)
        slots = text.slots[:, 1:].nonzero()[:, 1].reshape(batch, -1) + len(extra)
        return Sequence(words[:, :1], patches, torch.cat((*extra, words[:, 1:]), dim=1), mask, slots)

    # -- pruning, language model, readout

    def score(self, sequence: Sequence) -> Tensor:
        """The pruner's score (batch, patches, patches)."""
        masked = self.contract.pruning.mask_padding and not bool(sequence.task_mask.all())
        return pruner.score(sequence.patches, sequence.task, sequence.task_mask if masked else None)

    def run_language_model(
        self, sequence: Sequence, selection: Selection, layer_outputs: list[Tensor] | None = None
    ) -> Tensor:
        """Hidden states (batch, 1 + kept + task, hidden) after the final norm. Every token keeps its position."""
        embeddings = torch.cat((sequence.bos, selection.patches, sequence.task), dim=1)
        return self.language_model.model(  # type: ignore[no-any-return]
            embeddings, self.positions(sequence, selection), self._key_bias(sequence, selection), layer_outputs
        )

    @staticmethod
    def positions(sequence: Sequence, selection: Selection) -> Tensor:
        """Rotary positions (batch, 1 + kept + task): those of the unpruned sequence, so they have gaps."""
        batch, patches, _ = sequence.patches.shape
        task = torch.arange(sequence.task.shape[1], device=sequence.task.device).expand(batch, -1)
        return torch.cat((task.new_zeros(batch, 1), 1 + selection.positions, 1 + patches + task), dim=1)

    @staticmethod
    def _key_bias(sequence: Sequence, selection: Selection) -> Tensor | None:
        if selection.key_bias is None and bool(sequence.task_mask.all()):
            return None
        task = torch.zeros_like(sequence.task_mask, dtype=torch.float32)
        task = task.masked_fill(~sequence.task_mask, float("-inf"))
        kept = selection.key_bias
        if kept is None:
            kept = task.new_zeros(selection.positions.shape)
        return torch.cat((task.new_zeros(len(task), 1), kept.to(task.dtype), task), dim=1)

    def read_slots(self, hidden: Tensor, sequence: Sequence) -> Tensor:
        """The hidden states that feed the head: (batch, chunk * action_dim, hidden), by the contract's readout."""
        task_start = hidden.shape[1] - sequence.task.shape[1]
        index = task_start + sequence.slot_index + READOUT_OFFSET[self.contract.readout]
        return torch.take_along_dim(hidden, index[..., None], dim=1)

    # -- inference

    @torch.inference_mode()
    def predict(
        self,
        pixels: Tensor,
        text: TextInput,
        proprio: Tensor | None = None,
        noise: Tensor | None = None,
        denoising_steps: int = diffusion.TRAINING_STEPS,
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Prediction:
        """From preprocessed inputs to normalised actions. noise (batch, chunk, action_dim): where diffusion starts.

        mark: called with the name of each stage when it has been issued
        """
        patches = self.embed_images(pixels, text)
        mark("vision")
        if self.contract.action_head == "diffusion":
            assert noise is not None
            prediction = self._denoise(patches, text, proprio, noise, denoising_steps)
        else:
            states, votes = self.slot_states(self.assemble(patches, text, proprio))
            prediction = Prediction(self.actions_from_states(states), votes)
        mark("language")
        return prediction

    def slot_states(self, sequence: Sequence) -> tuple[Tensor, Tensor | None]:
        """Prune, run the language model, read: the states for the head, and each patch's votes."""
        votes = None
        selection = pruner.keep_all(sequence.patches)
        if self.contract.pruning.enabled:
            votes = pruner.count_votes(self.score(sequence))
            selection = pruner.keep_voted(
                sequence.patches, votes, weighted=self.contract.pruning.multiplicity == "weighted"
            )
        return self.read_slots(self.run_language_model(sequence, selection), sequence), votes

    def actions_from_states(self, states: Tensor) -> Tensor:
        """(batch, slots, hidden) -> normalised actions (batch, chunk, action_dim); with the diffusion head, noise"""
        if self.action_head is not None:
            return self.action_head(states)  # type: ignore[no-any-return]
        ids: Tensor = self.language_model.lm_head(states).argmax(dim=-1)
        values = decode_actions(ids, self.config.tokens)
        return values.reshape(len(ids), -1, len(self.contract.actions))

    def _denoise(
        self, patches: Tensor, text: TextInput, proprio: Tensor | None, noise: Tensor, steps: int
    ) -> Prediction:
        actions, votes = noise, None
        for timestep in diffusion.inference_timesteps(steps):
            times = torch.full((len(noise),), timestep, device=noise.device)
            states, votes = self.slot_states(self.assemble(patches, text, proprio, actions, times))
            actions = diffusion.denoise_step(actions, self.actions_from_states(states), timestep, steps)
        return Prediction(actions, votes)
