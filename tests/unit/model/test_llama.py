import math

import msgspec
import pytest
import torch
from hypothesis import given, settings, strategies as st

from atoll.config import ModelConfig, RopeScaling
from atoll.model.llama import (
    KvCache,
    Llama,
    causal_mask,
    document_blocks,
    document_mask,
    rotary_at,
    rotary_frequencies,
    rotate,
)

CONFIG = ModelConfig(
    vocab_size=32, num_layers=2, width=32, num_heads=4, num_kv_heads=2, ffn_width=48
)
CPU = torch.device("cpu")


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request):
    torch.manual_seed(0)
    return Llama(msgspec.structs.replace(CONFIG, tied_embeddings=request.param)).requires_grad_(
        False
    )


def tokens(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CONFIG.vocab_size, (batch, length), generator=generator)


def test_a_token_changes_no_logits_before_it_and_some_after(model):
    one = tokens(2, 12)
    other = one.clone()
    other[:, 7] = (other[:, 7] + 1) % CONFIG.vocab_size
    changed_BT = (model(one) - model(other)).abs().amax(dim=2) > 1e-6
    assert not changed_BT[:, :7].any()
    assert changed_BT[:, 7:].all()


def test_packed_documents_are_as_if_alone(model):
    lengths = (5, 1, 9)
    packed = tokens(1, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    alone = [model(part) for part in packed.split(lengths, dim=1)]
    assert close(model(packed, documents), torch.cat(alone, dim=1))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_a_mask_in_blocks_is_that_in_numbers(model):
    """Within 1e-5; torch has the forward pass alone for CPUs."""
    ends_at = torch.tensor([[70, 71, 250, 300], [1, 130, 257, 300]])
    documents = torch.searchsorted(ends_at, torch.arange(300).repeat(2, 1), right=True)
    expected = model(tokens(2, 300), documents)
    model.masks_in_blocks = True
    try:
        found, plain = model(tokens(2, 300), documents), model(tokens(2, 300))
    finally:
        model.masks_in_blocks = False
    assert close(found, expected)
    assert torch.equal(plain, model(tokens(2, 300))), "one document needs no blocks"
    assert not torch.equal(found, plain)


def test_blocks_in_which_nobody_sees_anything_are_left_out():
    documents = torch.arange(512).div(128, rounding_mode="floor")[None]
    kept = document_blocks(documents).to_dense()[0, 0]
    assert torch.equal(kept, torch.eye(4, dtype=kept.dtype))


def test_one_document_is_plain_causal_attention(model):
    batch = tokens(3, 10)
    assert close(model(batch, torch.zeros_like(batch)), model(batch))


@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (5, 1, 4, 2)], ids=str)
def test_the_cache_changes_nothing(model, pieces):
    batch = tokens(2, 12)
    cache = KvCache(model.config, max_tokens=12, batch_size=2)
    parts = [model(piece, cache=cache) for piece in batch.split(pieces, dim=1)]
    assert cache.num_tokens == 12
    assert close(torch.cat(parts, dim=1), model(batch))


def test_a_full_cache_is_a_bug(model):
    with pytest.raises(AssertionError, match="full"):
        model(tokens(1, 5), cache=KvCache(model.config, max_tokens=4))


def test_logits_are_the_hidden_state_times_the_head(model):
    batch = tokens(2, 6)
    assert torch.equal(model(batch), model.hidden(batch) @ model.head_weight.T)
    assert (model.head_weight is model.embedding.weight) == model.config.tied_embeddings


def test_every_parameter_has_a_gradient():
    model = Llama(CONFIG)
    model(tokens(2, 6)).logsumexp(dim=2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_bf16_is_close_to_fp32_with_rotations_in_fp32(model):
    batch = tokens(2, 12)
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch)
    error = (logits.float() - expected).norm() / expected.norm()
    assert 0 < error < 0.03


def test_the_masks_say_who_sees_whom():
    assert causal_mask(2, 3, device=CPU).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    mask_B1TT = document_mask(torch.tensor([[4, 4, 9]]), dtype=torch.float32)
    assert mask_B1TT.exp().tolist() == [[[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_attention_depends_on_the_difference_of_positions_only(query_at, key_at, shift):
    torch.manual_seed(query_at)
    q_BTHE, k_BTHE = torch.randn(2, 1, 1, 3, 8).unbind()

    def score(i, j):
        turned_q, turned_k = (
            rotate(x, rotary_at(p, 1, config=CONFIG, device=CPU))
            for x, p in ((q_BTHE, i), (k_BTHE, j))
        )
        return (turned_q * turned_k).sum(dim=-1)

    there = score(query_at, key_at)
    moved = score(query_at + shift, key_at + shift)
    assert torch.allclose(there, moved, rtol=0, atol=2e-3)  # sin and cos of 1000 rad in fp32
    assert not torch.allclose(score(0, 3), score(0, 4), rtol=0, atol=2e-3)


def test_scaling_keeps_fast_rotations_and_slows_slow_ones():
    config = ModelConfig(
        vocab_size=8, num_layers=1, width=128, num_heads=1, num_kv_heads=1, ffn_width=8
    )
    scaled = msgspec.structs.replace(config, rope_scaling=RopeScaling(factor=8.0))
    plain_R = rotary_frequencies(config, device=CPU)
    ratio_R = rotary_frequencies(scaled, device=CPU) / plain_R
    turns_R = 8192 * plain_R / (2 * math.pi)
    assert (ratio_R[turns_R >= 4] == 1).all()
    assert torch.allclose(ratio_R[turns_R <= 1], torch.tensor(1 / 8))
    between = ratio_R[(turns_R > 1) & (turns_R < 4)]
    assert len(between) > 0
    assert ((between > 1 / 8) & (between < 1)).all()
