"""Policy: a checkpoint that answers observations with action chunks, in robot units."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightvla_core.checkpoint import STATISTICS_FILE, load_model, read_json, require_folder
from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.interface import ActionChunk, Observation
from lightvla_core.model import diffusion
from lightvla_core.model.sequence import TextInput
from lightvla_core.model.vla import LightVLA
from lightvla_core.normalization import Normalizer
from lightvla_core.processing import PromptEncoder, prepare_images, require_packages, to_pixels

# Without cuDNN's, which plans for every sequence length anew (70 ms on an H200); each kept count is one.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Policy:
    """Preprocessing, network and un-normalization of one checkpoint.

    policy = Policy.from_checkpoint("checkpoints/fold_shirt", device="cuda")
    chunk = policy.predict_action(observation)
    """

    def __init__(
        self,
        model: LightVLA,
        prompt: PromptEncoder,
        normalizer: Normalizer,
        denoising_steps: int = diffusion.TRAINING_STEPS,
        seed: int = 0,
    ) -> None:
        """denoising_steps: of a diffusion head, 1..50; seed: of the noise from which it starts"""
        diffusion.inference_timesteps(denoising_steps)
        require_packages(model.contract)
        self._model = model
        self._prompt = prompt
        self._normalizer = normalizer
        self._denoising_steps = denoising_steps
        self._seed = seed
        self._text: tuple[tuple[str, ...], TextInput] | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        denoising_steps: int = diffusion.TRAINING_STEPS,
    ) -> Policy:
        """Load a checkpoint folder made by `lightvla import`, `lightvla init` or training.

        dtype: of weights and arithmetic; by default float32 on a CPU and bfloat16 on a GPU
        denoising_steps: of a diffusion head, 1..50; the fewer, the faster
        Raises LightVLAError, in one sentence, for a checkpoint that is missing, damaged or contradicts its contract.
        """
        folder = Path(path)
        require_folder(folder)
        device = resolve_device(device)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        model = load_model(folder, device, dtype)
        statistics = folder / STATISTICS_FILE
        normalizer = Normalizer.from_statistics(read_json(statistics), model.contract, str(statistics))
        prompt = PromptEncoder.from_folder(folder, model.contract, model.config.tokens)
        return cls(model, prompt, normalizer, denoising_steps)

    @property
    def contract(self) -> PolicyContract:
        return self._model.contract

    @property
    def device(self) -> torch.device:
        return self._model.language_model.lm_head.weight.device

    def predict_action(self, observation: Observation) -> ActionChunk:
        """One observation -> one action chunk. Raises LightVLAError when the observation does not fit the contract."""
        return self.predict_actions([observation])[0]

    def predict_actions(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """A batch of observations; each chunk is what its observation would give alone. timing is the batch's.

        A diffusion head starts from noise that the policy's seed and the observation's stamp determine, so that
        equal observations give equal chunks.
        """
        watch = _Stopwatch(self.device)
        weight = self._model.language_model.lm_head.weight
        images = [to_pixels(prepare_images(o.images, self.contract), self._model.config.towers) for o in observations]
        pixels = torch.cat(images).to(weight)
        proprio = self._proprio(observations)
        text = self._encode(tuple(o.instruction for o in observations))
        watch.mark("preprocess")
        with sdpa_kernel(_ATTENTION):
            prediction = self._model.predict(
                pixels,
                text,
                None if proprio is None else proprio.to(weight),
                self._draw_noise(observations),
                self._denoising_steps,
                mark=watch.mark,
            )
        normalized = prediction.actions.double().cpu().numpy()
        actions = self._normalizer.action.unnormalize(normalized)
        if not np.isfinite(actions).all():
            raise LightVLAError("the policy computed NaN or infinite actions; are the checkpoint and its inputs sound?")
        masks = self._kept_masks(prediction.votes, len(observations))
        watch.mark("postprocess")
        timing = watch.seconds()
        return [ActionChunk(a, m, timing, o.stamp) for a, m, o in zip(actions, masks, observations, strict=True)]

    def _encode(self, instructions: tuple[str, ...]) -> TextInput:
        # An instruction stays the same for many predictions.
        if self._text is None or self._text[0] != instructions:
            text = self._prompt.encode(list(instructions))
            device = self.device
            self._text = (instructions, TextInput(text.ids.to(device), text.mask.to(device), text.slots.to(device)))
        return self._text[1]

    def _proprio(self, observations: Sequence[Observation]) -> torch.Tensor | None:
        if self._normalizer.proprio is None:
            return None
        size = len(self.contract.proprioception)
        for observation in observations:
            proprio = observation.proprio
            if proprio is None or np.shape(proprio) != (size,) or not np.isfinite(proprio).all():
                got = "none" if proprio is None else f"{np.shape(proprio)}: {np.asarray(proprio)}"
                raise LightVLAError(f"the policy expects {size} finite numbers of proprioception, but got {got}")
        stacked = np.stack([self._normalizer.proprio.normalize(np.asarray(o.proprio)) for o in observations])
        return torch.from_numpy(stacked).float()

    def _draw_noise(self, observations: Sequence[Observation]) -> torch.Tensor | None:
        if self.contract.action_head != "diffusion":
            return None
        shape = (self.contract.chunk_length, len(self.contract.actions))
        seeds = [[self._seed, int(np.float64(o.stamp).view(np.uint64))] for o in observations]
        noise = np.stack([np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds])
        return torch.from_numpy(noise).to(self.device)

    def _kept_masks(self, votes: torch.Tensor | None, batch: int) -> list[dict[str, NDArray[np.bool_]]]:
        """votes (batch, patches), None where nothing is pruned -> for each sample, camera -> bool (rows, columns)"""
        cameras = self.contract.camera_names
        shape = (batch, len(cameras), *self._model.vision_backbone.grid)
        kept = np.ones(shape, dtype=bool) if votes is None else (votes > 0).cpu().numpy().reshape(shape)
        return [dict(zip(cameras, sample, strict=True)) for sample in kept]


def resolve_device(device: str | torch.device) -> torch.device:
    """A torch device that is really there; raises LightVLAError otherwise."""
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise LightVLAError(f"unknown device {device!r}; expected cpu, cuda or cuda:N") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise LightVLAError(f"device {device} was asked for, but torch sees no CUDA GPU; use device cpu")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise LightVLAError(f"device {device} was asked for, but torch sees {count} CUDA GPUs, counted from cuda:0")
    return resolved


class _Stopwatch:
    """Seconds between marks, on the GPU's own clock where there is one, so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._names: list[str] = []
        self._times: list[float | torch.cuda.Event] = [self._now()]

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, stage: str) -> None:
        self._names.append(stage)
        self._times.append(self._now())

    def seconds(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize()
        result = {}
        for name, before, after in zip(self._names, self._times, self._times[1:], strict=False):
            if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                result[name] = before.elapsed_time(after) / 1000
            elif isinstance(before, float) and isinstance(after, float):
                result[name] = after - before
        return result
