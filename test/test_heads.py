"""Action heads: shapes, the order of numbers, and the bins of discrete actions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightvla_core.model.config import TokenConfig
from lightvla_core.model.heads import DiffusionHead, L1Head, ScalarProjector, decode_actions, encode_actions

TOKENS = TokenConfig()


@pytest.mark.parametrize("head", [L1Head, DiffusionHead])
def test_a_head_reads_each_time_step_from_its_own_states(head):
    torch.manual_seed(0)
    module, states = head(16, 3), torch.randn(2, 4 * 3, 16)
    actions = module(states)
    assert actions.shape == (2, 4, 3)
    states[:, 3:6] *= torch.randn(16)  # the three states of the second step
    changed = (module(states) - actions).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False, True, False, False]


def test_a_projector_makes_one_token_of_each_vector():
    assert ScalarProjector(8, 16)(torch.randn(2, 8)).shape == (2, 16)
    assert ScalarProjector(1, 16)(torch.randn(2, 5, 1)).shape == (2, 5, 16)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_decoding_finds_the_encoded_action_to_half_a_bin(values):
    actions = torch.tensor(values, dtype=torch.float64)
    ids = encode_actions(actions, TOKENS)
    assert ((ids >= TOKENS.action_end - TOKENS.num_bins) & (ids < TOKENS.action_end)).all()
    assert (decode_actions(ids, TOKENS) - actions).abs().max() <= 1 / (TOKENS.num_bins - 1) + 1e-12


def test_actions_out_of_range_and_foreign_tokens_are_clipped():
    assert encode_actions(torch.tensor([-7.0, -1.0, 7.0]), TOKENS).tolist() == [31999, 31999, 31744]
    ends = decode_actions(torch.tensor([2, 31744, 31999, 32063]), TOKENS)
    assert torch.allclose(ends, torch.tensor([254, 254, -254, -254], dtype=torch.float64) / 255)
