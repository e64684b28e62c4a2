"""The inner optimizers against their formulas, in doubles; Muon's against an exact SVD.

Shapes: M rows and K columns of a matrix, R = min(M, K).
"""

from itertools import pairwise
from math import sqrt

import pytest
import torch
from msgspec.structs import replace

from atoll.config import InnerConfig, ModelConfig
from atoll.model.llama import Llama
from atoll.train.optim import make_optimizer

MODEL = ModelConfig(
    vocab_size=64, num_layers=2, width=48, num_heads=4, num_kv_heads=2, ffn_width=96
)
INNER = InnerConfig(lr=1e-2, batch_sequences=1, weight_decay=0.1)
NUM_STEPS = 4


def train(inner):
    """Return for each parameter its values before and after each step, and its gradients."""
    torch.manual_seed(0)
    model = Llama(MODEL)
    optimizer = make_optimizer(model, inner)
    history = {name: ([p.detach().double()], []) for name, p in model.named_parameters()}
    for _ in range(NUM_STEPS):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            history[name][1].append(parameter.grad.double())
        optimizer.step()
        for name, parameter in model.named_parameters():
            history[name][0].append(parameter.detach().double())
    return history


def adamw(value, gradients, *, decay):
    """Return the value after each step (arXiv 1711.05101, algorithm 2)."""
    mean, square, values = torch.zeros_like(value), torch.zeros_like(value), []
    for step, gradient in enumerate(gradients, start=1):
        mean = INNER.beta1 * mean + (1 - INNER.beta1) * gradient
        square = INNER.beta2 * square + (1 - INNER.beta2) * gradient**2
        scaled = mean / (1 - INNER.beta1**step)
        root = (square / (1 - INNER.beta2**step)).sqrt() + INNER.eps
        value = value * (1 - INNER.lr * decay) - INNER.lr * scaled / root
        values.append(value)
    return values


def is_muons(name, values):
    return name.startswith("layers.") and values[0].ndim == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_adamw_takes_the_steps_of_its_formula(optimizer):
    history = train(replace(INNER, optimizer=optimizer))
    for name, (values, gradients) in history.items():
        if optimizer == "muon" and is_muons(name, values):
            continue
        decay = INNER.weight_decay if values[0].ndim == 2 else 0.0
        expected = adamw(values[0], gradients, decay=decay)
        for value, reference in zip(values[1:], expected, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)


def test_muon_steps_along_the_polar_factor_of_the_mean_gradient():
    momentum = INNER.muon_momentum
    for name, (values, gradients) in train(replace(INNER, optimizer="muon")).items():
        if not is_muons(name, values):
            continue
        mean = torch.zeros_like(values[0])
        for (before, after), gradient in zip(pairwise(values), gradients, strict=True):
            mean = momentum * mean + (1 - momentum) * gradient
            nesterov = momentum * mean + (1 - momentum) * gradient
            u_MR, sigma_R, v_RK = torch.linalg.svd(nesterov, full_matrices=False)
            step = before * (1 - INNER.lr * INNER.weight_decay) - after
            orthogonal = step / (INNER.lr * 0.2 * sqrt(max(before.shape)))
            # In the bases of the exact SVD: a diagonal of about ones, but for directions in which
            # there is hardly a gradient. Products are in bf16, of 8 bits.
            core_RR = u_MR.T @ orthogonal @ v_RK.T
            share_R = sigma_R / sigma_R.norm()
            expected_RR = five_iterations(share_R).diag()
            assert (core_RR - expected_RR).norm() < 0.03 * expected_RR.norm(), name
            clear_R = core_RR.diagonal()[share_R > 0.02]
            assert clear_R.min() > 0.6, name
            assert clear_R.max() < 1.2, name


def five_iterations(sigma_R):
    """Return what Jordan's polynomial makes of singular values, five times over."""
    for _ in range(5):
        sigma_R = 3.4445 * sigma_R - 4.7750 * sigma_R**3 + 2.0315 * sigma_R**5
    return sigma_R


def test_a_step_of_muon_is_as_long_as_one_of_adam():
    """The reason for one lr: a value moves by 0.2 lr in the root mean square."""
    for name, (values, _) in train(replace(INNER, optimizer="muon", weight_decay=0.0)).items():
        if is_muons(name, values):
            for before, after in pairwise(values):
                moved = (after - before).square().mean().sqrt() / INNER.lr
                assert 0.12 < moved < 0.24, name
