"""The noise schedule and its deterministic way back."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lightvla_core.errors import LightVLAError
from lightvla_core.model import diffusion

PARITY = os.environ.get("LIGHTVLA_PARITY")


@given(st.integers(1, diffusion.TRAINING_STEPS))
def test_any_number_of_steps_descends_evenly_to_zero(steps):
    timesteps = diffusion.inference_timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps == sorted(timesteps, reverse=True)
    assert timesteps[-1] == 0
    assert {a - b for a, b in pairwise(timesteps)} <= {diffusion.TRAINING_STEPS // steps}
    assert timesteps[0] < diffusion.TRAINING_STEPS


@pytest.mark.parametrize("steps", [0, -3, 51, 1.0, True, "10"])
def test_other_numbers_of_steps_are_refused(steps):
    with pytest.raises(LightVLAError, match=r"denoising_steps should be a whole number in 1\.\.50"):
        diffusion.inference_timesteps(steps)


@given(st.integers(1, diffusion.TRAINING_STEPS), st.integers(0, 99))
def test_whoever_predicts_the_true_noise_finds_the_actions_again(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    actions, noise = torch.rand(2, 3, 4, generator=generator) * 2 - 1, torch.randn(2, 3, 4, generator=generator)
    timesteps = diffusion.inference_timesteps(steps)
    noisy = diffusion.add_noise(actions, noise, torch.full((2,), timesteps[0]))
    for timestep in timesteps:
        noisy = diffusion.denoise_step(noisy, noise, timestep, steps)
    # At the noisiest step 1 part in 1000 of the signal is left, and with it 1e-4 of its precision.
    assert torch.allclose(noisy, actions, atol=1e-3)


def test_the_signal_fades_from_nearly_all_to_nearly_none():
    alphas = diffusion.cumulative_alphas()
    assert (alphas.diff() < 0).all()
    assert alphas[0] > 0.99
    assert 0 < alphas[-1] < 1e-3


@pytest.mark.skipif(PARITY is None, reason="LIGHTVLA_PARITY does not name a parity folder")
def test_recorded_components_of_the_published_implementation():
    recorded = load_file(Path(PARITY) / "normalization" / "diffusion_components.safetensors")
    assert torch.allclose(diffusion.cumulative_alphas(), recorded["alphas_cumprod_50"], atol=1e-6)
    for steps in (5, 10, 25, 50):
        assert diffusion.inference_timesteps(steps) == recorded[f"ddim_timesteps_{steps}"].tolist()
    embedded = diffusion.embed_timesteps(torch.arange(50), 32)
    assert torch.allclose(embedded, recorded["time_encoder_dim32_t0_49"], atol=1e-5)
    noisy = diffusion.add_noise(*(recorded[f"add_noise_{name}"] for name in ("x0", "noise", "t")))
    assert torch.allclose(noisy, recorded["add_noise_out"], atol=1e-6)
    chain = recorded["ddim10_x"]
    for step, timestep in enumerate(diffusion.inference_timesteps(10)):
        following = diffusion.denoise_step(chain[step], recorded["ddim10_eps"][step], timestep, 10)
        assert torch.allclose(following, chain[step + 1], atol=1e-5)
