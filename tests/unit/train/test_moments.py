"""Moments that another peer has sent: true ones pass, made-up ones do not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace
from safetensors.numpy import save_file

from atoll.errors import BadBlobError
from atoll.model.llama import Llama
from atoll.train.moments import check_moments, largest_mean
from atoll.train.optim import copy_moments, make_optimizer, save_optimizer

NAME = "norm.weight"


def trained(config, *, scales):
    """Return the moments after a step with gradients of each of these scales."""
    torch.manual_seed(0)
    model = Llama(config.model)
    optimizer = make_optimizer(model, config.inner)
    for scale in scales:
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn_like(parameter)
        optimizer.step()
    return copy_moments(optimizer, model=model)


@settings(deadline=None, max_examples=30)
@given(
    scales=st.lists(st.sampled_from([0.0, 1e-30, 1e-20, 1e-8, 1.0, -1.0, 1e6]), min_size=1),
    betas=st.sampled_from([(0.9, 0.95), (0.9, 0.999), (0.0, 0.5), (0.95, 0.9)]),
)
def test_true_moments_pass_whatever_the_gradients_were(config, tmp_path_factory, scales, betas):
    config = replace(config, inner=replace(config.inner, beta1=betas[0], beta2=betas[1]))
    path = tmp_path_factory.mktemp("moments") / "moments"
    save_optimizer(path, trained(config, scales=scales), num_steps=len(scales))
    check_moments(path, config)


def test_the_bound_is_reached_by_the_worst_history(config):
    """Gradients that grow as (b2 / b1) ^ i make the inequality an equation."""
    beta1, beta2 = config.inner.beta1, config.inner.beta2
    mean = square = 0.0
    for i in range(500):
        gradient = (beta2 / beta1) ** i
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
    assert mean / square**0.5 == pytest.approx(largest_mean(config.inner), rel=2e-3)
    assert mean / square**0.5 < largest_mean(config.inner)


@pytest.mark.parametrize(
    ("exp_avg", "exp_avg_sq", "match"),
    [
        (0.0, -1e-3, "mean squares"),
        (0.0, np.nan, "mean squares"),
        (0.0, np.inf, "mean squares"),
        (np.nan, 1.0, "means of"),
        (1.2, 1.0, "means of"),
        (-1e-3, 0.0, "means of"),
    ],
)
def test_moments_that_no_gradients_have_are_refused(config, tmp_path, exp_avg, exp_avg_sq, match):
    moments = trained(config, scales=[1.0])
    moments[f"exp_avg.{NAME}"][:] = 0.0
    moments[f"exp_avg_sq.{NAME}"][:] = 1.0
    moments[f"exp_avg.{NAME}"][-1] = exp_avg
    moments[f"exp_avg_sq.{NAME}"][-1] = exp_avg_sq
    save_optimizer(tmp_path / "lie", moments, num_steps=1)
    with pytest.raises(BadBlobError, match=match):
        check_moments(tmp_path / "lie", config)


def test_what_belongs_to_another_model_is_refused(config, tmp_path):
    moments = trained(config, scales=[1.0])
    others = {
        "longer": moments | {f"exp_avg.{NAME}": np.zeros(3, np.float32)},
        "lacking": {name: m for name, m in moments.items() if name != f"exp_avg.{NAME}"},
        "more": moments | {"exp_avg.else": np.zeros(3, np.float32)},
        "doubles": moments | {f"exp_avg.{NAME}": moments[f"exp_avg.{NAME}"].astype(np.float64)},
    }
    for name, tensors in others.items():
        save_optimizer(tmp_path / name, tensors, num_steps=1)
        with pytest.raises(BadBlobError, match="another model"):
            check_moments(tmp_path / name, config)
    save_optimizer(tmp_path / "fresh", {}, num_steps=0)
    with pytest.raises(BadBlobError, match="another model"):
        check_moments(tmp_path / "fresh", config)
    save_file(moments, tmp_path / "plain")
    (tmp_path / "garbage").write_bytes(b"\xff" * 1000)
    for name in ("plain", "garbage"):
        with pytest.raises(BadBlobError, match="not a state of the optimizer"):
            check_moments(tmp_path / name, config)


@pytest.fixture(scope="module")
def muons(config):
    return replace(config, inner=replace(config.inner, optimizer="muon"))


def of_muon(config, scale):
    """Return the moments after two steps with gradients of this scale, clipped as a step does."""
    torch.manual_seed(0)
    model = Llama(config.model)
    optimizer = make_optimizer(model, config.inner)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn_like(parameter)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.inner.clip_norm)
        optimizer.step()
    return copy_moments(optimizer, model=model)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e6])
def test_true_moments_of_muon_pass(muons, tmp_path, scale):
    save_optimizer(tmp_path / "muon", of_muon(muons, scale), num_steps=2)
    check_moments(tmp_path / "muon", muons)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1.01])
def test_means_that_no_clipped_gradients_have_are_refused(muons, tmp_path, value):
    moments = of_muon(muons, 1.0)
    mean = moments["momentum_buffer.layers.0.ffn.up.weight"]
    mean[:] = 0.0
    mean[0, 0] = value
    save_optimizer(tmp_path / "lie", moments, num_steps=2)
    with pytest.raises(BadBlobError, match="no clipped gradients"):
        check_moments(tmp_path / "lie", muons)


def test_moments_of_the_other_optimizer_are_refused(config, muons, tmp_path):
    save_optimizer(tmp_path / "muon", of_muon(muons, 1.0), num_steps=2)
    with pytest.raises(BadBlobError, match="another model"):
        check_moments(tmp_path / "muon", config)
