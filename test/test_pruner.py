"""The token pruner: votes, order, padding, multiplicity, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightvla_core.model import pruner


def draw(batch, patches, task, hidden=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, n, hidden, generator=generator) for n in (patches, task))


@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 10), st.integers(0, 99))
def test_every_row_votes_once(batch, patches, task, seed):
    votes = pruner.count_votes(pruner.score(*draw(batch, patches, task, seed=seed)))
    assert votes.shape == (batch, patches)
    assert votes.sum(dim=1).tolist() == [patches] * batch


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 99), st.booleans())
def test_kept_patches_keep_order_and_position_and_batches_are_padded_with_hidden_rows(batch, patches, seed, weighted):
    x, task = draw(batch, patches, 5, seed=seed)
    votes = pruner.count_votes(pruner.score(x, task))
    selection = pruner.keep_voted(x, votes, weighted)
    for b in range(batch):
        kept = (votes[b] > 0).nonzero()[:, 0]
        n = len(kept)
        assert selection.positions[b, :n].tolist() == kept.tolist()
        assert torch.equal(selection.patches[b, :n], x[b, kept])
        if selection.key_bias is not None:
            expected = votes[b, kept].float().log() if weighted else torch.zeros(n)
            assert torch.allclose(selection.key_bias[b, :n], expected)
            assert (selection.key_bias[b, n:] == -math.inf).all()
    assert selection.patches.shape[1] == (votes > 0).sum(1).max()


def test_masked_task_tokens_change_nothing():
    x, task = draw(2, 12, 6)
    padded = torch.cat((task, torch.full((2, 3, 16), 7.0)), dim=1)
    mask = torch.tensor([[True] * 6 + [False] * 3] * 2)
    assert torch.allclose(pruner.score(x, padded, mask), pruner.score(x, task), atol=1e-6)
    assert not torch.allclose(pruner.score(x, padded), pruner.score(x, task), atol=1e-3)


def test_training_keeps_every_row_and_replaces_it_by_its_choice():
    x, task = draw(2, 12, 6)
    score = pruner.score(x, task)
    selection = pruner.replace_by_choice(x, score)
    choice = score.argmax(-1)
    assert torch.equal(selection.positions, choice)
    assert torch.allclose(selection.patches, torch.take_along_dim(x, choice[..., None], 1), atol=1e-5)


def test_the_gradient_reaches_the_task_through_the_soft_choice():
    x, task = draw(1, 12, 6)
    task.requires_grad_(True)
    pruner.replace_by_choice(x, pruner.score(x, task)).patches.square().sum().backward()
    assert task.grad is not None
    assert task.grad.abs().max() > 0


def test_noise_can_change_the_choice():
    x, task = draw(1, 12, 6)
    score = pruner.score(x, task)
    noise = torch.zeros_like(score)
    noise[0, :, 3] = 100.0
    assert pruner.replace_by_choice(x, score, noise).positions.tolist() == [[3] * 12]


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 999))
def test_weighted_attention_over_kept_patches_equals_attention_over_all_rows(patches, task, seed):
    """m equal keys, and one key whose logit is raised by log m, draw the same attention."""
    x, words = (t.double() for t in draw(1, patches, task, seed=seed))
    votes = pruner.count_votes(pruner.score(x, words))
    trained = pruner.replace_by_choice(x, pruner.score(x, words)).patches.detach()
    selection = pruner.keep_voted(x, votes, weighted=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    full = attend(words, trained, trained)
    kept = attend(words, selection.patches, selection.patches, attn_mask=selection.key_bias[:, None, :])
    assert torch.allclose(full, kept, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_single_survivor_is_enough(weighted):
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    votes = torch.tensor([[0, 0, 5, 0, 0]])
    selection = pruner.keep_voted(x, votes, weighted)
    assert selection.positions.tolist() == [[2]]
    assert torch.equal(selection.patches[0, 0], x[0, 2])


@settings(max_examples=50, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 30), st.integers(1, 10), st.integers(1, 10), st.integers(0, 999))
def test_a_score_whose_constant_part_is_reused_equals_the_plain_score(batch, patches, constant, changing, seed):
    """Wherever the changing tokens stand, whatever is padding: within 1e-5, with the same votes."""
    x, task = draw(batch, patches, constant + changing + 2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(constant + changing + 2, generator=generator)
    stays = torch.zeros(batch, len(order), dtype=torch.bool)
    stays[:, order[:constant]] = True
    index = order[constant : constant + changing]
    visible = stays.clone()
    visible[:, index] = True  # the last two are padding
    repeated = pruner.RepeatedScore(x, task, stays)
    for _ in range(3):
        task[:, index] = torch.randn(batch, changing, 16, generator=generator) * 4
        plain = pruner.score(x, task, visible)
        assert torch.allclose(repeated(task[:, index]), plain, atol=1e-5)
        assert torch.equal(pruner.count_votes(repeated(task[:, index])), pruner.count_votes(plain))


def test_the_score_survives_logits_of_any_size():
    """Patches and task that agree fully have logits of √hidden, all others far less."""
    x = torch.eye(64)[None] * 100
    assert pruner.score(x, x[:, :40])[0, :40].argmax(-1).tolist() == list(range(40))
    assert torch.isfinite(pruner.score(x.bfloat16(), x.bfloat16())).all()
