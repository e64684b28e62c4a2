"""Attention in blocks against the formula in fp64, all at once."""

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from atoll.model import attention
from atoll.model.llama import document_mask


def inputs(*, samples, tokens, kv_heads, heads_of_one, width, dtype=torch.float32):
    """Return queries, keys, values, and a gradient, in memory as a model has them."""
    torch.manual_seed(tokens)
    num_heads = kv_heads * heads_of_one
    q, k, v, dy = (
        torch.randn(samples, tokens, heads, width, dtype=dtype).transpose(1, 2)
        for heads in (num_heads, kv_heads, kv_heads, num_heads)
    )
    return q, k, v, dy


def documents(samples, tokens, *, length):
    """Return numbers of documents so long, other cuts in each sample."""
    at_T = torch.arange(tokens)
    return torch.stack([(at_T + 3 * sample) // length for sample in range(samples)])


def formula(q, k, v, mask):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    tokens = q.shape[2]
    if mask is None:
        mask = torch.full((tokens, tokens), -torch.inf, dtype=q.dtype).triu(1)
    return torch.softmax(q @ k.mT / q.shape[3] ** 0.5 + mask, dim=-1) @ v


def with_gradients(attend, q, k, v, dy, mask, *, dtype):
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    y = attend(*leaves, None if mask is None else mask.to(dtype))
    return y.detach(), *torch.autograd.grad(y, leaves, dy.to(dtype))


def errors(found, expected):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@settings(deadline=None, max_examples=25)
@given(
    samples=st.integers(1, 3),
    tokens=st.integers(2, 70),
    kv_heads=st.integers(1, 3),
    heads_of_one=st.integers(1, 3),
    width=st.sampled_from([2, 8, 10]),
    length=st.sampled_from([0, 1, 5, 40]),
    block_tokens=st.sampled_from([1, 7, 16, 128]),
    at_once=st.sampled_from([1, 500, 5000, 2**20]),
)
@example(3, 33, 3, 2, 8, 0, 16, 2500)  # the last of each are fewer
def test_blocks_change_nothing(
    samples, tokens, kv_heads, heads_of_one, width, length, block_tokens, at_once
):
    """Within 1e-6 of the norm, in fp32, as the issue of the trainer asks."""
    q, k, v, dy = inputs(
        samples=samples, tokens=tokens, kv_heads=kv_heads, heads_of_one=heads_of_one, width=width
    )
    mask = None
    if length:
        mask = document_mask(documents(samples, tokens, length=length), dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_TOKENS", block_tokens)
        patch.setattr(attention, "SCORES_PER_THREAD", at_once)
        found = with_gradients(attention.attend, q, k, v, dy, mask, dtype=torch.float32)
    expected = with_gradients(formula, q, k, v, dy, mask, dtype=torch.float64)
    # A token that sees but itself has no gradient of scores: a zero in fp64, a rounding in fp32.
    floor = 1e-6 * float(dy.norm())
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() < 1e-6 * b.norm() + floor / 10


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_those_of_the_differences(packed, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_TOKENS", 3)
    q, k, v, _ = inputs(
        samples=2, tokens=7, kv_heads=2, heads_of_one=2, width=2, dtype=torch.float64
    )
    mask = document_mask(documents(2, 7, length=4), dtype=torch.float64) if packed else None
    leaves = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(attention.attend, (*leaves, mask))


def test_bf16_is_as_near_as_by_the_kernel_of_torch():
    """Scores are rounded, as they are not there; sums over blocks are not, as they are there."""
    q, k, v, dy = inputs(samples=2, tokens=300, kv_heads=2, heads_of_one=3, width=64)

    def of_torch(q, k, v, _):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    narrow = [x.bfloat16() for x in (q, k, v, dy)]
    expected = with_gradients(formula, *narrow, None, dtype=torch.float64)
    ours = with_gradients(attention.attend, *narrow, None, dtype=torch.bfloat16)
    theirs = with_gradients(of_torch, *narrow, None, dtype=torch.bfloat16)
    for mine, other in zip(errors(ours, expected), errors(theirs, expected), strict=True):
        assert 1e-3 < mine < 2 * other < 2e-2


def test_autocast_does_not_look_inside():
    q, k, v, dy = inputs(samples=1, tokens=20, kv_heads=1, heads_of_one=2, width=8)
    plain = with_gradients(attention.attend, q, k, v, dy, None, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(attention.attend, q, k, v, dy, None, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_torch_knows_shapes_and_strides_without_values():
    """Compilation and the test of memory go by them."""
    q, k, v, dy = inputs(samples=2, tokens=9, kv_heads=2, heads_of_one=2, width=4)
    mask = document_mask(documents(2, 9, length=4), dtype=torch.float32)

    def results(q, k, v, dy, mask):
        forward, backward = torch.ops.atoll.attend, torch.ops.atoll.attend_backward
        return forward(q, k, v, mask), *backward(dy, q, k, v, mask)

    with FakeTensorMode() as pretending:
        found = results(*(pretending.from_tensor(x) for x in (q, k, v, dy, mask)))
    for a, b in zip(found, results(q, k, v, dy, mask), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
