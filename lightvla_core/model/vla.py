"""The whole policy network: images, numbers and words in one sequence; normalised actions out.

How the sequence is laid out stands in sequence.py, how causal models write their actions in generation.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.model import diffusion, generation, pruner
from lightvla_core.model.config import ModelConfig
from lightvla_core.model.heads import DiffusionHead, L1Head, ScalarProjector, decode_actions
from lightvla_core.model.llama import KeyValueCache, Llama
from lightvla_core.model.pruner import RepeatedScore, Selection
from lightvla_core.model.sequence import Sequence, TextInput, hide_padding
from lightvla_core.model.vision import Projector, VisionBackbone


@dataclass(frozen=True)
class Prediction:
    """actions (batch, chunk, action_dim) normalised, float32 or float64; votes int64 (batch, patches), of the last
    denoising step where there are several, None without a pruner
    """

    actions: Tensor
    votes: Tensor | None


class LightVLA(nn.Module):
    """Vision towers, projector, pruner, Llama and action head, as the contract wants them."""

    def __init__(self, config: ModelConfig, contract: PolicyContract) -> None:
        super().__init__()
        self.config = config
        self.contract = contract
        hidden = config.llama.hidden_size
        action_dim = len(contract.actions)
        self.vision_backbone = VisionBackbone(config.towers, film_language_dim=hidden if contract.film else None)
        self.projector = Projector(self.vision_backbone.embed_dim, hidden, fused=len(config.towers) > 1)
        self.language_model = Llama(config.llama, config.tokens.pad, causal=contract.attention == "causal")
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

    def assemble(self, patches: Tensor, text: TextInput, proprio: Tensor | None) -> Sequence:
        """Put everything in one row. proprio (batch, proprio_dim) normalised.

        Action slots are zero, and so is the diffusion head's timestep token, until insert_noise fills them; with
        causal attention the tokens in the slots, which training feeds, stay as they are.
        """
        words = self.language_model.model.embed_tokens(text.ids)
        if not self.language_model.model.causal:
            words = words * ~text.slots[..., None]
        extra = []
        if self.proprio_projector is not None:
            assert proprio is not None
            extra.append(self.proprio_projector(proprio.to(words.dtype))[:, None])
        if self.noisy_action_projector is not None:
            extra.append(torch.zeros_like(words[:, :1]))
        batch = words.shape[0]
        mask = torch.cat((text.mask.new_ones(batch, len(extra)), text.mask[:, 1:]), dim=1)
        slots = text.slots[:, 1:].nonzero()[:, 1]
        slots = slots.reshape(batch, len(slots) // batch) + len(extra)
        noisy = None
        if self.noisy_action_projector is not None:
            noisy = torch.cat((slots.new_full((batch, 1), len(extra) - 1), slots), dim=1)
        return Sequence(words[:, :1], patches, torch.cat((*extra, words[:, 1:]), dim=1), mask, slots, noisy)

    def insert_noise(self, sequence: Sequence, noisy_actions: Tensor, timesteps: Tensor) -> Sequence:
        """What the diffusion head reads: noisy_actions (batch, chunk, action_dim), one token a number, timesteps
        (batch,)
        """
        assert self.noisy_action_projector is not None
        dtype, hidden = sequence.task.dtype, sequence.task.shape[-1]
        times = diffusion.embed_timesteps(timesteps, hidden).to(dtype)
        tokens = self.noisy_action_projector(noisy_actions.flatten(1)[..., None].to(dtype))
        return sequence.with_noisy_tokens(torch.cat((times[:, None], tokens), dim=1))

    # -- pruning, language model, readout

    def score(self, sequence: Sequence) -> Tensor:
        """The pruner's score (batch, patches, patches)."""
        masked = self.contract.pruning.mask_padding and not bool(sequence.task_mask.all())
        return pruner.score(sequence.patches, sequence.task, sequence.task_mask if masked else None)

    def repeated_score(self, sequence: Sequence) -> RepeatedScore:
        """score for each denoising step: it wants the sequence's noisy_tokens."""
        constant = sequence.constant_mask()
        if self.contract.pruning.mask_padding:
            constant = constant & sequence.task_mask
        return RepeatedScore(sequence.patches, sequence.task, constant)

    def select(self, sequence: Sequence, votes: Tensor | None) -> Selection:
        """The patches that enter the language model; all of them where votes is None."""
        if votes is None:
            return pruner.keep_all(sequence.patches)
        return pruner.keep_voted(sequence.patches, votes, self.contract.pruning.multiplicity == "weighted")

    def run_language_model(
        self, sequence: Sequence, selection: Selection, layer_outputs: list[Tensor] | None = None
    ) -> Tensor:
        """Hidden states (batch, 1 + kept + task, hidden) after the final norm. Every token keeps its position."""
        return self.language_model.model(  # type: ignore[no-any-return]
            sequence.embeddings(selection), sequence.positions(selection), sequence.key_bias(selection), layer_outputs
        )

    def read_slots(self, hidden: Tensor, sequence: Sequence) -> Tensor:
        """The hidden states that feed the head: (batch, chunk * action_dim, hidden), by the contract's readout."""
        return sequence.read_slots(hidden, self.contract.readout)

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
        if self.contract.attention == "causal":
            prediction = self._generate(patches, text)
        elif self.contract.action_head == "diffusion":
            assert noise is not None
            prediction = self._denoise(self.assemble(patches, text, proprio), noise, denoising_steps)
        else:
            sequence = self.assemble(patches, text, proprio)
            votes = pruner.count_votes(self.score(sequence)) if self.contract.pruning.enabled else None
            prediction = Prediction(self.actions_from_states(self.slot_states(sequence, votes)), votes)
        mark("language")
        return prediction

    def slot_states(self, sequence: Sequence, votes: Tensor | None) -> Tensor:
        """Prune by votes, run the language model, read: the states for the head."""
        return self.read_slots(self.run_language_model(sequence, self.select(sequence, votes)), sequence)

    def actions_from_states(self, states: Tensor) -> Tensor:
        """(batch, slots, hidden) -> normalised actions (batch, chunk, action_dim); with the diffusion head, noise"""
        if self.action_head is not None:
            return self.action_head(states)  # type: ignore[no-any-return]
        return self._actions_from_ids(self.language_model.lm_head(states).argmax(dim=-1))

    def _actions_from_ids(self, ids: Tensor) -> Tensor:
        values = decode_actions(ids, self.config.tokens)
        return values.reshape(len(ids), -1, len(self.contract.actions))

    def _denoise(self, sequence: Sequence, noise: Tensor, steps: int) -> Prediction:
        actions, votes = noise, None
        score = self.repeated_score(sequence) if self.contract.pruning.enabled else None
        for timestep in diffusion.inference_timesteps(steps):
            times = torch.full((len(noise),), timestep, device=noise.device)
            sequence = self.insert_noise(sequence, actions, times)
            if score is not None:
                votes = pruner.count_votes(score(sequence.noisy_tokens))
            predicted = self.actions_from_states(self.slot_states(sequence, votes))
            actions = diffusion.denoise_step(actions, predicted, timestep, steps)
        return Prediction(actions, votes)

    def _generate(self, patches: Tensor, text: TextInput) -> Prediction:
        count = self.contract.chunk_length * len(self.contract.actions)
        return Prediction(self._actions_from_ids(generation.generate(self, text.ids, text.mask, patches, count)), None)

    # -- the vision-language model itself

    def forward(
        self, ids: Tensor, mask: Tensor, patches: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Next-token logits (batch, tokens, vocabulary), without anything that makes this a policy.

        ids int64 and mask bool (batch, length), False on padding, which stands on the right
        patches: of embed_images, behind the first token (multimodal), or None (language only)
        cache: what came before ids; they are appended to it (cached generation). Raises LightVLAError where attention
            is bidirectional, since there every token depends on those that follow
        """
        if cache is not None and not self.language_model.model.causal:
            raise LightVLAError("cached generation needs causal attention, but the contract says bidirectional")
        embeddings = self.language_model.model.embed_tokens(ids)
        if patches is not None:
            embeddings = torch.cat((embeddings[:, :1], patches, embeddings[:, 1:]), dim=1)
            mask = torch.cat((mask[:, :1], mask.new_ones(patches.shape[:2]), mask[:, 1:]), dim=1)
        seen = mask if cache is None else cache.append(mask)
        # Padding takes up no position: what follows a padded prompt continues where its last word stands.
        positions = seen.cumsum(dim=1)[:, -embeddings.shape[1] :] - 1
        hidden = self.language_model.model(embeddings, positions, hide_padding(seen), cache=cache)
        return self.language_model.lm_head(hidden)  # type: ignore[no-any-return]
