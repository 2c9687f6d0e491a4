"""The noise schedule of the diffusion head and its deterministic (DDIM) way back. Tensors only, no network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightvla_core.errors import LightVLAError

TRAINING_STEPS = 50


def cumulative_alphas() -> Tensor:
    """float32 (TRAINING_STEPS,): the share of signal left at each timestep, squared-cosine schedule."""

    def signal(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - signal((i + 1) / TRAINING_STEPS) / signal(i / TRAINING_STEPS), 0.999) for i in range(TRAINING_STEPS)
    ]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)


def inference_timesteps(steps: int) -> list[int]:
    """The "leading" spacing: multiples of TRAINING_STEPS // steps, from the noisiest down to 0.

    Raises LightVLAError unless steps is a whole number in 1..TRAINING_STEPS.
    """
    if type(steps) is not int or not 1 <= steps <= TRAINING_STEPS:
        raise LightVLAError(f"denoising_steps should be a whole number in 1..{TRAINING_STEPS}, but is {steps!r}")
    stride = TRAINING_STEPS // steps
    return [i * stride for i in reversed(range(steps))]


def add_noise(actions: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """actions, noise (batch, chunk, action_dim), timesteps int64 (batch,) -> noisy actions of the same shape"""
    alphas = cumulative_alphas().to(actions)[timesteps][:, None, None]
    return alphas.sqrt() * actions + (1 - alphas).sqrt() * noise


def denoise_step(noisy: Tensor, predicted_noise: Tensor, timestep: int, steps: int) -> Tensor:
    """One step of DDIM (eta 0): estimate the clean actions, clip them to [-1, 1], add back the noise of the next step.

    The noise is used as predicted, not recomputed from the clipped estimate.
    """
    alphas = cumulative_alphas()
    alpha = float(alphas[timestep])
    following = timestep - TRAINING_STEPS // steps
    alpha_next = float(alphas[following]) if following >= 0 else 1.0
    clean = ((noisy - math.sqrt(1 - alpha) * predicted_noise) / math.sqrt(alpha)).clamp(-1, 1)
    return math.sqrt(alpha_next) * clean + math.sqrt(1 - alpha_next) * predicted_noise


def embed_timesteps(timesteps: Tensor, hidden_size: int) -> Tensor:
    """timesteps (batch,) -> float32 (batch, hidden_size): sines, then cosines, of geometrically spaced frequencies"""
    half = hidden_size // 2
    exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / (half - 1)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
