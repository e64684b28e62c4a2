"""The norm of CPUs against the formula in fp64."""

import torch
from hypothesis import given, strategies as st
from torch import nn

from atoll.model.norm import Norm

EPS = 1e-5


def with_gradients(norm, x, dy):
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    return y.detach(), x.grad, norm.weight.grad


def formula(x):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


@given(
    shape=st.sampled_from([(1, 1), (5, 64), (3, 7, 96), (2, 1, 130), (2048, 48)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    in_autocast=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_formula(shape, dtype, size, in_autocast):
    torch.manual_seed(sum(shape))
    x, dy = (size * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    norm = Norm(shape[-1], eps=EPS, dtype=dtype)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    exact = nn.Module()
    exact.weight = nn.Parameter(norm.weight.detach().double())
    exact.forward = lambda x: formula(x) * exact.weight
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_autocast):
        got = with_gradients(norm, x, dy)
    assert [each.dtype for each in got] == [dtype] * 3
    tolerance = 1e-6 if dtype == torch.float32 else 5e-3
    y, _, _ = wanted = with_gradients(exact, x.double(), dy.double())
    # The gradient of x is what two terms leave of each other: nothing, where the width is one.
    scales = [y.norm(), (dy.double() * exact.weight * y / x.double()).norm(), wanted[2].norm()]
    for mine, theirs, scale in zip(got, wanted, scales, strict=True):
        assert (mine.double() - theirs).norm() <= tolerance * scale


def test_one_value_and_one_number_for_each_token_are_kept():
    kept = []
    norm = Norm(32, eps=EPS)
    x = torch.randn(2, 5, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        norm(x)
    assert sorted(each.numel() for each in kept) == [2 * 5, 32, 2 * 5 * 32]
