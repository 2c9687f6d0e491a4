"""The loss of a batch: which tokens count, and that padding and causal attention are respected."""

import pytest
import torch
from model_fixtures import TOKENS, draw_noise, draw_pixels, draw_proprio, draw_text, make_model, row

from lightvla_core.contract import Pruning
from lightvla_core.finetuning.objective import IGNORED, Batch, Randomness, action_slots, compute_loss
from lightvla_core.model.heads import encode_actions

HEADS = ("l1", "diffusion", "discrete")


def make_batch(model, lengths):
    count, text = len(lengths), draw_text(model, lengths)
    actions = draw_noise(model, count, seed=9).tanh()
    labels = torch.full_like(text.ids, IGNORED)
    labels[text.slots] = encode_actions(actions, TOKENS).flatten()
    labels[text.ids == TOKENS.stop] = TOKENS.stop
    return Batch(draw_pixels(model, count), text.ids, text.mask, labels, actions, draw_proprio(model, count)), text


def part(batch, text, i):
    own = row(text, i)
    length, only = own.ids.shape[1], slice(i, i + 1)
    proprio = None if batch.proprio is None else batch.proprio[only]
    return Batch(batch.pixels[only], own.ids, own.mask, batch.labels[only, :length], batch.actions[only], proprio)


def test_action_slots_are_the_action_labels_alone():
    labels = torch.tensor([[IGNORED, 64, 95, 2, 63]])
    assert action_slots(labels, TOKENS).tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_a_batch_is_the_mean_over_its_samples(head):
    """Whatever the lengths of their prompts."""
    model = make_model(action_head=head)
    batch, text = make_batch(model, [5, 11, 8])
    noise = draw_noise(model, 3)
    times = torch.tensor([3, 40, 11]) if head == "diffusion" else None
    with torch.inference_mode():
        together = compute_loss(model, batch, Randomness(None, noise, times)).loss
        alone = [
            compute_loss(
                model,
                part(batch, text, i),
                Randomness(None, noise[i : i + 1], None if times is None else times[i : i + 1]),
            ).loss
            for i in range(3)
        ]
    assert together == pytest.approx(float(torch.stack(alone).mean()), rel=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_reaches_every_part_but_the_padding_token(head):
    model = make_model(action_head=head, film=True)
    batch, _ = make_batch(model, [5, 11])
    times = torch.tensor([3, 40]) if head == "diffusion" else None
    compute_loss(model, batch, Randomness(None, draw_noise(model, 2), times)).loss.backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert idle <= ({"language_model.lm_head.weight"} if head != "discrete" else set())
    assert not model.language_model.model.embed_tokens.weight.grad[TOKENS.pad].any()


def test_a_bidirectional_model_never_sees_the_actions_it_is_to_find_and_a_causal_one_only_earlier_ones():
    for attention in ("bidirectional", "causal"):
        model = make_model(
            proprio=0, action_head="discrete", attention=attention, pruning=Pruning(enabled=False), chunk=2
        )
        batch, _ = make_batch(make_model(proprio=0, action_head="discrete", chunk=2), [6])
        slots = action_slots(batch.labels, TOKENS).nonzero()[:, 1]
        first = batch.ids.clone()
        first[:, slots] = batch.labels[:, slots]
        second = first.clone()
        second[:, slots[1]] = TOKENS.action_end - 1 - (second[:, slots[1]] == TOKENS.action_end - 1).long()
        with torch.inference_mode():
            one, other = (
                compute_loss(
                    model, Batch(batch.pixels, ids, batch.mask, batch.labels, batch.actions), Randomness()
                ).hidden
                for ids in (first, second)
            )
        place = one.shape[1] - first.shape[1] + int(slots[1])
        assert torch.equal(one[:, :place], other[:, :place])
        assert torch.equal(one[:, place:], other[:, place:]) is (attention == "bidirectional")
