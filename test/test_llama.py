"""The language model: what each token sees, and that a cache changes nothing but the work."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import TOKENS, draw_pixels, draw_text, make_causal_model, make_model, relative_error, row

from lightvla_core.errors import LightVLAError
from lightvla_core.model.config import LlamaConfig
from lightvla_core.model.generation import generate
from lightvla_core.model.llama import KeyValueCache, LlamaModel


def llama(causal, num_kv_heads=4, seed=0):
    torch.manual_seed(seed)
    return LlamaModel(LlamaConfig(50, 32, 64, 2, 4, num_kv_heads, 8), None, causal).eval()


def run(model, x, **kwargs):
    with torch.inference_mode():
        return model(x, torch.arange(x.shape[1]).expand(len(x), -1), **kwargs)


def test_bidirectional_tokens_see_what_follows_and_causal_tokens_do_not():
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 5] += 1
    for causal in (True, False):
        model = llama(causal)
        before, after = run(model, x), run(model, changed)
        assert torch.equal(before[:, :5], after[:, :5]) is causal
        assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_a_hidden_key_changes_no_other_token(causal):
    model, x = llama(causal), torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(2, 9)
    bias[:, 7:] = -math.inf
    assert torch.allclose(run(model, x, key_bias=bias)[:, :7], run(model, x[:, :7]), atol=1e-5)


def test_a_key_that_counts_twice_equals_the_same_token_twice_at_one_position():
    model, x = llama(causal=False), torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([[0, math.log(2), 0, 0, 0]])
    with torch.inference_mode():
        doubled = model(x[:, [0, 1, 1, 2, 3, 4]], torch.tensor([[0, 1, 1, 2, 3, 4]]))
    assert torch.allclose(run(model, x, key_bias=bias), doubled[:, [0, 1, 3, 4, 5]], atol=1e-5)


@settings(max_examples=25, derandomize=True)
@given(st.integers(1, 3), st.lists(st.integers(1, 5), min_size=2, max_size=4), st.sampled_from([1, 2, 4]))
def test_any_division_into_cached_passes_equals_one_pass(batch, pieces, num_kv_heads):
    model, length = llama(True, num_kv_heads), sum(pieces)
    x = torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(length))
    cache, outputs, start = KeyValueCache(model.config), [], 0
    for piece in pieces:
        seen = cache.append(torch.ones(batch, piece, dtype=torch.bool))
        with torch.inference_mode():
            positions = torch.arange(start, start + piece).expand(batch, -1)
            outputs.append(model(x[:, start : start + piece], positions, torch.zeros(seen.shape), cache=cache))
        start += piece
    assert relative_error(torch.cat(outputs, dim=1), run(model, x)) < 1e-5


# -- the three forward modes of the vision-language model


def recompute(model, ids, patches, count):
    """The reference: each token from the logits of a whole forward pass over everything before it."""
    logits = []
    for _ in range(count):
        logits.append(model(ids, torch.ones_like(ids, dtype=torch.bool), patches)[:, -1:])
        ids = torch.cat((ids, logits[-1].argmax(-1)), dim=1)
    return torch.cat(logits, dim=1), ids[:, -count:]


@settings(max_examples=15, derandomize=True)
@given(st.lists(st.integers(3, 12), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_cached_generation_equals_full_recomputation_token_by_token(lengths, multimodal, seed):
    """Logits within 1e-5 and identical tokens, for prompts of different lengths in one batch."""
    model = make_causal_model(seed=seed)
    text = draw_text(model, lengths, seed)
    with torch.inference_mode():
        patches = model.embed_images(draw_pixels(model, len(lengths), seed), text) if multimodal else None
        tokens = generate(model, text.ids, text.mask, patches, 7)
        cache = KeyValueCache(model.config.llama)
        model(text.ids, text.mask, patches, cache)
        cached = [model(token, torch.ones_like(token, dtype=torch.bool), cache=cache) for token in tokens.split(1, 1)]
        for i in range(len(lengths)):
            own = None if patches is None else patches[i : i + 1]
            logits, expected = recompute(model, row(text, i).ids, own, 8)
            assert tokens[i].tolist() == expected[0, :7].tolist()
            assert relative_error(torch.cat(cached, dim=1)[i], logits[0, 1:]) < 1e-5


def test_language_only_and_multimodal_logits_follow_the_sequence_they_describe():
    model = make_causal_model()
    text = draw_text(model, [6])
    with torch.inference_mode():
        patches = model.embed_images(draw_pixels(model, 1), text)
        language, multimodal = model(text.ids, text.mask), model(text.ids, text.mask, patches)
        assert language.shape == (1, 6, 112)
        assert multimodal.shape == (1, 6 + patches.shape[1], 112)
        assert torch.allclose(multimodal[:, 0], language[:, 0], atol=1e-5), "the first token sees only itself"
        assert not torch.allclose(multimodal[:, -1], language[:, -1], atol=1e-3)


def test_padding_changes_no_logit():
    model = make_model(proprio=0)
    text = draw_text(model, [4, 9])
    with torch.inference_mode():
        together, alone = model(text.ids, text.mask), model(row(text, 0).ids, row(text, 0).mask)
    assert relative_error(together[:1, : alone.shape[1]], alone) < 1e-5


def test_a_cache_is_refused_where_attention_is_bidirectional():
    model = make_model()
    token = torch.full((1, 1), TOKENS.bos)
    with pytest.raises(LightVLAError, match="cached generation needs causal attention"):
        model(token, token > 0, cache=KeyValueCache(model.config.llama))
