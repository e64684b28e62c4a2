"""Stopping, cutting and merging must not change what the inner loop computes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
)
from atoll.data.batches import Batches
from atoll.data.prepare import prepare
from atoll.model.flat import load_flat_, store_flat_
from atoll.model.layout import layout_of
from atoll.model.shapes import num_parameters
from atoll.train.baseline import initial_model
from atoll.train.inner import Computing, InnerLoop
from atoll.train.moments import check_moments
from atoll.train.optim import copy_moments, load_optimizer_, save_optimizer
from atoll.train.work import cut_into_steps

H = 4

CONFIG = RunConfig(
    name="inner",
    model=ModelConfig(
        vocab_size=300,
        num_layers=2,
        width=32,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=64,
        tied_embeddings=True,
    ),
    data=DataConfig(
        sources=(SourceConfig(kind="path", name="text.txt"),),
        tokenizer=TokenizerConfig(vocab_size=300),
        sequence_length=24,
    ),
    inner=InnerConfig(lr=3e-3, batch_sequences=6, warmup_steps=2, z_loss=2e-4),
    sync=SyncConfig(rounds=2, inner_steps=H),
)
LAYOUT = layout_of(CONFIG)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inner")
    text = " ".join(f"the island {k} is {k * k} miles from the atoll" for k in range(900))
    (directory / "text.txt").write_text(text)
    dataset = prepare(
        CONFIG, base_directory=directory, directory=directory, on_progress=lambda *_: None
    )
    return Batches(dataset, seed=CONFIG.seed)


def fresh_loop(batches, *, micro_batch=0, config=CONFIG, reads_ahead=None):
    torch.set_num_threads(2)
    model = initial_model(config, device=torch.device("cpu"))
    how = Computing(micro_batch=micro_batch, reads_ahead=reads_ahead)
    return InnerLoop(model, batches, config, how=how)


def train(loop, *, first_step, num_steps):
    """Take the steps on the run's samples in order; return their losses."""
    size = CONFIG.inner.batch_sequences
    spans = [(first_step * size, (first_step + num_steps) * size)]
    steps = [*cut_into_steps(spans, batch_sequences=size), ()]
    return [
        loop.step(spans, step=step, then=then).loss
        for step, (spans, then) in enumerate(pairwise(steps), start=first_step)
    ]


def weights(loop):
    out_N = np.empty(num_parameters(CONFIG.model), np.float32)
    store_flat_(loop.model, out_N, LAYOUT)
    return out_N


def test_the_same_inputs_give_the_same_bits(batches):
    one, other = fresh_loop(batches), fresh_loop(batches)
    losses = train(one, first_step=0, num_steps=2 * H)
    assert losses == train(other, first_step=0, num_steps=2 * H)
    assert losses[-1] < losses[0], "it must have learnt something, or equality says little"
    assert weights(one).tobytes() == weights(other).tobytes()


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_samples_that_are_read_ahead_give_the_same_bits(batches, micro_batch):
    one, ahead = (
        fresh_loop(batches, micro_batch=micro_batch, reads_ahead=reads) for reads in (False, True)
    )
    losses = train(one, first_step=0, num_steps=2 * H)
    assert train(ahead, first_step=0, num_steps=H) == losses[:H]
    assert train(ahead, first_step=H, num_steps=H) == losses[H:]
    assert weights(one).tobytes() == weights(ahead).tobytes()


def test_merging_the_unchanged_weights_changes_nothing(batches):
    whole, halves = fresh_loop(batches), fresh_loop(batches)
    train(whole, first_step=0, num_steps=2 * H)
    train(halves, first_step=0, num_steps=H)
    load_flat_(halves.model, weights(halves), LAYOUT)
    train(halves, first_step=H, num_steps=H)
    assert weights(whole).tobytes() == weights(halves).tobytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_interrupted_and_resumed_is_never_interrupted(batches, tmp_path, optimizer):
    config = replace(CONFIG, inner=replace(CONFIG.inner, optimizer=optimizer))
    whole, first = fresh_loop(batches, config=config), fresh_loop(batches, config=config)
    expected = train(whole, first_step=0, num_steps=2 * H)
    train(first, first_step=0, num_steps=H)
    path = tmp_path / "optimizer.safetensors"
    moments = copy_moments(first.optimizer, model=first.model)
    save_optimizer(path, moments, num_steps=first.steps_since_fresh)
    check_moments(path, config)
    second = fresh_loop(batches, config=config)
    load_flat_(second.model, weights(first), LAYOUT)
    second.steps_since_fresh = load_optimizer_(path, second.optimizer, model=second.model)
    assert train(second, first_step=H, num_steps=H) == expected[H:]
    assert weights(whole).tobytes() == weights(second).tobytes()


def test_a_joiner_with_state_and_moments_takes_exactly_the_donors_next_steps(batches, tmp_path):
    donor, joiner, fresh = fresh_loop(batches), fresh_loop(batches), fresh_loop(batches)
    train(donor, first_step=0, num_steps=H)
    path = tmp_path / "moments"
    moments = copy_moments(donor.optimizer, model=donor.model)
    save_optimizer(path, moments, num_steps=donor.steps_since_fresh)
    check_moments(path, CONFIG)
    state_N = weights(donor) * np.float32(0.99)  # what the outer step has made of all of them
    for loop in (donor, joiner, fresh):
        load_flat_(loop.model, state_N, LAYOUT)
    joiner.steps_since_fresh = load_optimizer_(path, joiner.optimizer, model=joiner.model)
    losses = train(donor, first_step=H, num_steps=H)
    assert train(joiner, first_step=H, num_steps=H) == losses
    assert weights(joiner).tobytes() == weights(donor).tobytes()
    train(fresh, first_step=H, num_steps=H)
    assert weights(fresh).tobytes() != weights(donor).tobytes()


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_micro_batch_changes_no_more_than_the_order_of_sums(batches, micro_batch):
    whole, cut = fresh_loop(batches), fresh_loop(batches, micro_batch=micro_batch)
    losses = train(whole, first_step=0, num_steps=H)
    assert train(cut, first_step=0, num_steps=H) == pytest.approx(losses, rel=1e-5)
    gradients = [
        torch.cat([p.grad.flatten() for p in loop.model.parameters()]) for loop in (whole, cut)
    ]
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < 1e-3
