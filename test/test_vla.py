"""The policy network: batches, exact pruning, readouts, every head and option."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import (
    FUSED,
    TOKENS,
    draw_noise,
    draw_pixels,
    draw_proprio,
    draw_text,
    make_causal_model,
    make_model,
    relative_error,
    row,
    tower,
)

from lightvla_core.contract import Pruning
from lightvla_core.finetuning.objective import IGNORED, Batch, Randomness, compute_loss
from lightvla_core.model import diffusion, pruner
from lightvla_core.model.config import DINOV2_LARGE
from lightvla_core.model.heads import encode_actions

HEADS = ("l1", "diffusion", "discrete")
SINGLE = (tower(),)
STEPS = 5


def predict(model, pixels, text, proprio, noise):
    return model.predict(pixels, text, proprio, noise, STEPS)


def assert_a_batch_gives_what_its_samples_give(model, lengths):
    batch = len(lengths)
    pixels, text, proprio = draw_pixels(model, batch), draw_text(model, lengths), draw_proprio(model, batch)
    noise = draw_noise(model, batch)
    together = predict(model, pixels, text, proprio, noise)
    assert together.actions.shape == noise.shape
    kept = set()
    for i in range(batch):
        own = slice(i, i + 1)
        alone = predict(model, pixels[own], row(text, i), None if proprio is None else proprio[own], noise[own])
        assert torch.allclose(together.actions[own], alone.actions, rtol=0, atol=1e-5)
        if alone.votes is not None:
            assert torch.equal(together.votes[own], alone.votes)
            kept.add(int((alone.votes > 0).sum()))
    return kept


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("multiplicity", ["weighted", "ignore"])
@pytest.mark.parametrize("head", HEADS)
def test_a_batch_gives_what_its_samples_give_alone(head, multiplicity, film):
    """With different kept counts and prompt lengths, within 1e-5."""
    model = make_model(action_head=head, film=film, pruning=Pruning(multiplicity=multiplicity))
    kept = assert_a_batch_gives_what_its_samples_give(model, [9, 4, 12, 7])
    assert len(kept) > 1, "the samples differ in how many patches they keep"


def test_a_causal_batch_gives_what_its_samples_give_alone():
    assert_a_batch_gives_what_its_samples_give(make_causal_model(), [9, 4, 12, 7])


@pytest.mark.parametrize("kind", [*HEADS, "causal"])
def test_every_head_computes_in_bfloat16(kind):
    """As on a GPU: weights and inputs in bfloat16, noise and denoised actions in float32."""
    model = (make_causal_model() if kind == "causal" else make_model(action_head=kind, film=True)).bfloat16()
    pixels, text, proprio = draw_pixels(model, 2), draw_text(model, [9, 4]), draw_proprio(model, 2)
    state = None if proprio is None else proprio.bfloat16()
    actions = predict(model, pixels.bfloat16(), text, state, draw_noise(model, 2)).actions
    assert torch.isfinite(actions).all()


def test_without_pruning_a_batch_gives_what_its_samples_give_alone():
    assert_a_batch_gives_what_its_samples_give(make_model(pruning=Pruning(enabled=False)), [9, 4, 12])


def test_unmasked_padding_takes_part_in_the_scores_as_published():
    model = make_model(pruning=Pruning(mask_padding=False))
    text, patches = draw_text(model, [4, 14]), torch.randn(2, 18, 32, generator=torch.Generator().manual_seed(5))
    proprio = draw_proprio(model, 2)
    padded = model.assemble(patches, text, proprio)
    alone = model.assemble(patches[:1], row(text, 0), proprio[:1])
    assert not torch.allclose(model.score(padded)[:1], model.score(alone), atol=1e-3)
    assert torch.equal(model.score(padded), pruner.score(patches, padded.task))


# -- exact pruning


def training_batch(model, pixels, text, proprio, actions):
    labels = torch.full_like(text.ids, IGNORED)
    labels[text.slots] = encode_actions(actions, TOKENS).flatten()
    labels[text.ids == TOKENS.stop] = TOKENS.stop
    return Batch(pixels, text.ids, text.mask, labels, actions, proprio)


@settings(max_examples=40, derandomize=True)
@given(
    head=st.sampled_from(HEADS),
    images=st.integers(1, 3),
    proprio=st.integers(0, 4),
    action_dim=st.integers(1, 4),
    chunk=st.integers(1, 4),
    layers=st.integers(1, 3),
    lengths=st.lists(st.integers(3, 12), min_size=1, max_size=3),
    film=st.booleans(),
    seed=st.integers(0, 999),
)
def test_weighted_inference_equals_the_noise_free_training_forward(
    head, images, proprio, action_dim, chunk, layers, lengths, film, seed
):
    """Hidden states and head outputs of kept tokens against those of all rows, to 1e-5 relative."""
    model = make_model(FUSED, images, proprio, action_dim, chunk, seed, layers=layers, action_head=head, film=film)
    batch = len(lengths)
    pixels, text = draw_pixels(model, batch, seed), draw_text(model, lengths, seed)
    state, noise, actions = draw_proprio(model, batch), draw_noise(model, batch), draw_noise(model, batch, 9).tanh()
    timesteps = torch.arange(batch) * 7 if head == "diffusion" else None
    with torch.inference_mode():
        trained = compute_loss(
            model, training_batch(model, pixels, text, state, actions), Randomness(None, noise, timesteps)
        )
        sequence = model.assemble(model.embed_images(pixels, text), text, state)
        if timesteps is not None:
            sequence = model.insert_noise(sequence, diffusion.add_noise(actions, noise, timesteps), timesteps)
        votes = pruner.count_votes(model.score(sequence))
        states = model.slot_states(sequence, votes)
        expected = model.read_slots(trained.hidden, trained.sequence)
        assert relative_error(states, expected) < 1e-5
        output = model.actions_from_states(states)
        assert relative_error(output, model.actions_from_states(expected)) < 1e-5
        if trained.output is not None:
            assert relative_error(output, trained.output) < 1e-5


def test_ignored_multiplicity_is_another_function_than_the_trained_one():
    model = make_model()
    pixels, text, proprio = draw_pixels(model, 1), draw_text(model, [8]), draw_proprio(model, 1)
    weighted = predict(model, pixels, text, proprio, None).actions
    model.contract = dataclasses.replace(model.contract, pruning=Pruning(multiplicity="ignore"))
    ignored = predict(model, pixels, text, proprio, None).actions
    assert not torch.allclose(weighted, ignored, atol=1e-3)


# -- denoising


def test_denoising_steps_share_the_vision_features_and_the_constant_part_of_the_scores(monkeypatch):
    model = make_model(action_head="diffusion")
    attended, seen, attend = [], [], pruner.attend
    monkeypatch.setattr(pruner, "attend", lambda *inputs: attended.append(inputs[1].shape[1]) or attend(*inputs))
    model.vision_backbone.register_forward_hook(lambda *_: seen.append(1))
    text = draw_text(model, [8])
    predict(model, draw_pixels(model, 1), text, draw_proprio(model, 1), draw_noise(model, 1))
    changing = 1 + int(text.slots.sum())  # the timestep and the noisy actions
    assert len(seen) == 1
    assert attended[0] > changing
    assert attended[1:] == [changing] * STEPS


# -- options


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_published_readout_reads_two_positions_later(head, enabled):
    model = make_model(action_head=head, pruning=Pruning(enabled=enabled))
    sequence = model.assemble(torch.randn(2, 18, 32), draw_text(model, [5, 8]), draw_proprio(model, 2))
    hidden = torch.arange(1 + 18 + sequence.task.shape[1])[None, :, None].expand(2, -1, 1)
    preceding = model.read_slots(hidden, sequence)
    model.contract = dataclasses.replace(model.contract, readout="published_lightvla")
    assert torch.equal(model.read_slots(hidden, sequence), preceding + 2)
    # BOS, patches, the other tokens in front (proprioception and, with diffusion, the timestep), the words.
    extra = 2 if head == "diffusion" else 1
    for first, length in zip(preceding[:, 0, 0].tolist(), (5, 8), strict=True):
        assert first == 18 + extra + length - 1, "the empty token stands before the first slot"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("proprio", [0, 3])
@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("towers", [FUSED, SINGLE], ids=["fused", "single"])
def test_every_input_matters_in_every_form(towers, images, proprio, head):
    model = make_model(towers, images, proprio, action_head=head)
    text, state, noise = draw_text(model, [8]), draw_proprio(model, 1), draw_noise(model, 1)
    pixels = draw_pixels(model, 1)
    patches = model.embed_images(pixels, text)
    assert patches.shape == (1, images * 9, 32)
    base = model.assemble(patches, text, state)
    if head == "diffusion":
        base = model.insert_noise(base, noise, torch.tensor([45]))
    states = model.slot_states(base, None)
    for image in range(images):
        changed = patches.clone()
        changed[:, image * 9 : (image + 1) * 9] += 1
        other = model.slot_states(dataclasses.replace(base, patches=changed), None)
        assert not torch.allclose(states, other, atol=1e-4)
    assert base.task.shape[1] == text.ids.shape[1] - 1 + bool(proprio) + (head == "diffusion")
    assert torch.isfinite(predict(model, pixels, text, state, noise).actions).all()


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("fused", [False, True])
def test_backbones_at_both_published_sizes(fused, size, film):
    towers = (tower(DINOV2_LARGE, size, 16),) * fused + (tower(image_size=size, embed_dim=16),)
    model = make_model(towers, images=1, film=film)
    text, grid = draw_text(model, [5]), size // 14
    assert model.vision_backbone.grid == (grid, grid)
    assert (model.projector.fc3 is not None) is fused
    prediction = predict(model, draw_pixels(model, 1), text, draw_proprio(model, 1), None)
    assert prediction.votes.shape == (1, grid * grid)
    assert torch.isfinite(prediction.actions).all()


@pytest.mark.parametrize("towers", [FUSED, SINGLE], ids=["fused", "single"])
def test_with_film_the_words_reach_the_image_features(towers):
    for film in (True, False):
        model = make_model(towers, film=film)
        pixels, texts = draw_pixels(model, 1), [draw_text(model, [8], seed) for seed in (0, 1)]
        first, second = (model.embed_images(pixels, text) for text in texts)
        assert torch.allclose(first, second, atol=1e-6) is not film


def test_a_causal_model_predicts_what_its_training_loss_calls_likeliest():
    """Teacher-forced on the tokens that it generated, every token is the likeliest."""
    model = make_causal_model(seed=4)
    pixels, prompt = draw_pixels(model, 1), draw_text(model, [8])
    actions = model.predict(pixels, prompt).actions
    assert actions.shape == (1, 1, 7)
    with torch.inference_mode():
        patches = model.embed_images(pixels, prompt)
        ids = prompt.ids
        for _ in range(7):
            logits = model(ids, torch.ones_like(ids, dtype=torch.bool), patches)[:, -1:]
            ids = torch.cat((ids, logits.argmax(-1)), dim=1)
        assert torch.equal(model._actions_from_ids(ids[:, -7:]), actions)
        labels = torch.full_like(ids, IGNORED)
        labels[:, -7:] = ids[:, -7:]
        outcome = compute_loss(
            model, Batch(pixels, ids, torch.ones_like(ids, dtype=torch.bool), labels, actions), Randomness()
        )
        chosen = model.language_model.lm_head(outcome.hidden[:, -8:-1]).argmax(-1)
        assert torch.equal(chosen, ids[:, -7:])
