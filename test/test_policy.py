"""From an observation to an action chunk in robot units."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightvla_core import LightVLAError, Observation, Policy
from lightvla_core.contract import Camera, Pruning
from lightvla_core.inspection import inspect_folder
from lightvla_core.normalization import Normalizer
from lightvla_core.presets import aloha_contract, random_model, tiny, tiny_tokenizer
from lightvla_core.processing import PromptEncoder

RNG = np.random.default_rng(0)
START = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.5] * 2)


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return Policy.from_checkpoint(tiny_checkpoint)


def observe(instruction="pick up the red cube", cameras=("cam_high", "cam_left_wrist"), **fields):
    images = {name: RNG.integers(0, 256, (112, 112, 3), dtype=np.uint8) for name in cameras}
    return Observation(**{"images": images, "proprio": START, "instruction": instruction, "stamp": 12.5, **fields})


def test_a_chunk_has_robot_units_kept_patches_and_timing(policy):
    chunk = policy.predict_action(observe())
    assert chunk.actions.shape == (25, 14)
    assert chunk.actions.dtype == np.float64
    assert np.isfinite(chunk.actions).all()
    assert {name: mask.shape for name, mask in chunk.kept.items()} == {"cam_high": (8, 8), "cam_left_wrist": (8, 8)}
    assert 1 <= sum(mask.sum() for mask in chunk.kept.values()) < 128
    assert list(chunk.timing) == ["preprocess", "vision", "language", "postprocess"]
    assert all(seconds >= 0 for seconds in chunk.timing.values())
    assert chunk.stamp == 12.5


def test_the_same_observation_gives_the_same_chunk(policy):
    observation = observe()
    first, second = policy.predict_action(observation), policy.predict_action(observation)
    assert np.array_equal(first.actions, second.actions)


def test_no_attention_is_used_that_plans_for_every_sequence_length(policy, monkeypatch):
    attention, cudnn = F.scaled_dot_product_attention, []

    def recorded(*arguments, **options):
        cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    policy.predict_action(observe())
    assert set(cudnn) == {False}


def test_every_input_matters(policy):
    base = observe()
    chunk = policy.predict_action(base).actions
    images = {**base.images, "cam_left_wrist": 255 - base.images["cam_left_wrist"]}
    for change in ({"images": images}, {"proprio": START + 0.1}, {"instruction": "open the drawer"}):
        assert not np.allclose(policy.predict_action(dataclasses.replace(base, **change)).actions, chunk, atol=1e-4)


def test_a_batch_gives_what_its_samples_give_alone(policy):
    """With different kept counts and prompt lengths, within 1e-5 of the actions' range."""
    observations = [observe("go"), observe("pick up the red cube and place it in the bowl"), observe()]
    alone = [policy.predict_action(o) for o in observations]
    assert len({sum(m.sum() for m in c.kept.values()) for c in alone}) > 1
    for single, batched in zip(alone, policy.predict_actions(observations), strict=True):
        assert np.allclose(single.actions, batched.actions, rtol=0, atol=1e-5)
        assert all(np.array_equal(single.kept[name], batched.kept[name]) for name in single.kept)


def fresh_policy(*, denoising_steps=50, seed=0, **fields):
    """Two arms, random weights, a contract with these fields changed."""
    cameras = (Camera("cam_high", 112, 112), Camera("cam_left_wrist", 112, 112))
    contract = dataclasses.replace(aloha_contract(cameras, chunk_length=2), **fields)
    bounds = {"min": [-2.0] * 14, "max": [2.0] * 14}
    normalizer = Normalizer.from_statistics({"aloha_sim": {"action": bounds, "proprio": bounds}}, contract, "test")
    prompt = PromptEncoder(tiny_tokenizer(), contract, tiny().tokens)
    return Policy(random_model(tiny(), contract, seed=0), prompt, normalizer, denoising_steps, seed)


VARIANTS = {
    "diffusion": {"action_head": "diffusion", "denoising_steps": 5},
    "discrete": {"action_head": "discrete"},
    "film": {"film": True},
    "no proprioception": {"proprioception": ()},
    "ignored multiplicity": {"pruning": Pruning(multiplicity="ignore")},
    "causal": {
        "action_head": "discrete",
        "attention": "causal",
        "proprioception": (),
        "pruning": Pruning(enabled=False),
        "chunk_length": 1,
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_policy_gives_a_batch_what_its_samples_get_alone(name):
    policy = fresh_policy(**VARIANTS[name])
    observations = [observe("go", stamp=1.0), observe("pick up the red cube and place it", stamp=2.0)]
    alone, together = [policy.predict_action(o) for o in observations], policy.predict_actions(observations)
    for single, batched in zip(alone, together, strict=True):
        assert single.actions.shape == (policy.contract.chunk_length, 14)
        assert np.allclose(single.actions, batched.actions, rtol=0, atol=2e-5)  # 1e-5 of a range of ±2


def test_diffusion_noise_follows_from_seed_and_stamp_alone():
    policy, again = (fresh_policy(**VARIANTS["diffusion"]) for _ in range(2))
    other_seed = fresh_policy(**VARIANTS["diffusion"], seed=1)
    observation = observe()
    first = policy.predict_action(observation).actions
    later = policy.predict_action(dataclasses.replace(observation, stamp=13.0)).actions
    assert np.array_equal(policy.predict_action(observation).actions, first)
    assert np.array_equal(again.predict_action(observation).actions, first)
    assert not np.allclose(later, first, atol=1e-3)
    assert not np.allclose(other_seed.predict_action(observation).actions, first, atol=1e-3)


@pytest.mark.parametrize("steps", [0, 51, -1, 2.5, True, None])
def test_an_impossible_number_of_denoising_steps_is_refused(tiny_checkpoint, steps):
    with pytest.raises(LightVLAError, match=r"denoising_steps should be a whole number in 1\.\.50, but is"):
        Policy.from_checkpoint(tiny_checkpoint, denoising_steps=steps)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"instruction": " "}, "the instruction is empty"),
        ({"cameras": ("cam_high",)}, "expects images of cam_high, cam_left_wrist, but got cam_high"),
        ({"proprio": None}, "expects 14 finite numbers of proprioception, but got none"),
        ({"proprio": START[:7]}, "expects 14 finite numbers"),
        ({"proprio": START * np.nan}, "expects 14 finite numbers"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(policy, fields, sentence):
    with pytest.raises(LightVLAError, match=sentence):
        policy.predict_action(observe(**fields))


@pytest.mark.parametrize(("device", "sentence"), [("abacus", "unknown device"), ("cuda", "no CUDA GPU")])
def test_a_device_that_is_not_there_is_refused(tiny_checkpoint, device, sentence, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LightVLAError, match=sentence):
        Policy.from_checkpoint(tiny_checkpoint, device=device)


def test_a_gpu_beyond_the_last_one_is_refused(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(LightVLAError, match="device cuda:7 was asked for, but torch sees 2 CUDA GPUs"):
        Policy.from_checkpoint(tiny_checkpoint, device="cuda:7")


def test_a_camera_size_that_the_towers_do_not_take_is_refused_on_loading(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    data = json.loads((copy / "contract.json").read_text())
    data["cameras"][1]["width"] = 224
    (copy / "contract.json").write_text(json.dumps(data))
    sentence = r"contract\.json: camera cam_left_wrist has 112x224 px, but the vision towers .* take 112x112"
    with pytest.raises(LightVLAError, match=sentence):
        Policy.from_checkpoint(copy)
    assert len(inspect_folder(copy).problems) == 1


def test_a_contract_with_another_number_of_cameras_names_what_the_policy_expects(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    data = json.loads((copy / "contract.json").read_text())
    data["cameras"] = data["cameras"][:1]
    (copy / "contract.json").write_text(json.dumps(data))
    with pytest.raises(LightVLAError, match="expects images of cam_high, but got cam_high, cam_left_wrist"):
        Policy.from_checkpoint(copy).predict_action(observe())
