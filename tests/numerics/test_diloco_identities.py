"""Where DiLoCo is something simpler, it must give what that gives.

Shapes: N values of the model.
"""

import numpy as np
import pytest
import torch
from msgspec.structs import replace as changed
from tests.numerics.diloco import (
    ANNA,
    BEN,
    CARL,
    CONFIG,
    commit_,
    copy_of,
    flat,
    fresh_loop,
    initial_state,
    train_round,
    with_codec,
)

from atoll.data.batches import Batches
from atoll.ids import digest_of
from atoll.model.flat import load_flat_
from atoll.model.layout import layout_of
from atoll.outer.checkpoint import StateStore
from atoll.outer.manifest import manifest_of
from atoll.train.baseline import initial_model, train_alone
from atoll.train.optim import copy_moments, load_optimizer_, save_optimizer

RUN = digest_of(b"run")
ROUND_SAMPLES = CONFIG.samples_per_round


def samples_of(round_number, *, place=0, num_peers=1):
    """Return the spans of a peer in round 0, 1, ...: whole rounds, dealt out in turn."""
    first = (round_number * num_peers + place) * ROUND_SAMPLES
    return [(first, first + ROUND_SAMPLES)]


# --- one peer = plain training -------------------------------------------------------------------


def trained_alone(dataset):
    """Return the parameters, and the loss of each step, of training without any outer step."""
    trained = train_alone(
        CONFIG,
        dataset,
        model=initial_model(CONFIG, device=torch.device("cpu")),
        num_steps=CONFIG.total_steps,
        on_step=lambda step, result: None,
    )
    plain = [parameter.detach().numpy().ravel() for parameter in trained.model.parameters()]
    return np.concatenate(plain), trained.losses


def test_one_peer_that_averages_with_nobody_trains_as_if_alone(dataset):
    state = initial_state(CONFIG)
    loop = fresh_loop(CONFIG, Batches(dataset, seed=CONFIG.seed))
    losses = []
    for number in range(CONFIG.sync.rounds):
        made, round_losses = train_round(loop, state, samples_of(number))
        commit_(state, {ANNA: made}, CONFIG)
        losses += round_losses
    plain_N, plain_losses = trained_alone(dataset)
    assert losses == plain_losses
    assert losses[-1] < losses[0] - 0.5, "it must have learnt something, or equality says little"
    assert state.params_N.tobytes() == plain_N.tobytes()


def test_with_fp32_codecs_a_round_moves_a_parameter_by_an_ulp_and_a_half_at_most(dataset):
    # g - l is rounded once: by half an ulp of it, which is at most one of the larger of g and l.
    # What the outer step makes of it is rounded once more: another half.
    config = with_codec(CONFIG, "fp32")
    state = initial_state(config)
    loop = fresh_loop(config, Batches(dataset, seed=config.seed))
    losses = []
    for number in range(config.sync.rounds):
        before_N = state.params_N.copy()
        made, round_losses = train_round(loop, state, samples_of(number))
        commit_(state, {ANNA: made}, config)
        local_N = flat(loop)
        ulp_N = np.spacing(np.maximum(np.abs(before_N), np.abs(local_N))).astype(np.float64)
        error_N = np.abs(state.params_N.astype(np.float64) - local_N)
        assert (error_N <= 1.5 * ulp_N).all()
        losses += round_losses
    assert losses == pytest.approx(trained_alone(dataset)[1], rel=1e-4)


# --- H = 1 with SGD = one peer with the batches of all -------------------------------------------

# Clipping is not linear, so no gradient is long enough for it; nor is any contribution.
SGD = changed(
    CONFIG,
    inner=changed(CONFIG.inner, lr=0.2, clip_norm=1e6, warmup_steps=0, cooldown_steps=0),
    sync=changed(CONFIG.sync, inner_steps=1, rounds=8, clip_to_median=1e6),
)


def sgd_loop(dataset, *, batch_sequences):
    """Return an inner loop whose optimizer is plain SGD; the loop sets its learning rate."""
    inner = changed(SGD.inner, batch_sequences=batch_sequences)
    loop = fresh_loop(changed(SGD, inner=inner), Batches(dataset, seed=SGD.seed))
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=SGD.inner.lr)
    return loop


@pytest.mark.parametrize("sizes", [(4, 4, 4), (6, 4, 2)])
def test_one_step_of_sgd_on_many_peers_is_one_with_all_their_samples(dataset, sizes):
    state, large = initial_state(SGD), initial_state(SGD)
    start_N = state.params_N.copy()
    loops = [sgd_loop(dataset, batch_sequences=size) for size in sizes]
    large_loop = sgd_loop(dataset, batch_sequences=sum(sizes))
    for number in range(SGD.sync.rounds):
        made, first = {}, number * sum(sizes)
        made_large, _ = train_round(large_loop, large, [(first, first + sum(sizes))])
        for peer, loop, size in zip((ANNA, BEN, CARL), loops, sizes, strict=True):
            made[peer], _ = train_round(loop, state, [(first, first + size)])
            first += size
        commit_(state, made, SGD)
        commit_(large, {ANNA: made_large}, SGD)
    # What is left is the order of sums within a gradient, and the rounding of local parameters.
    moved = np.linalg.norm(large.params_N - start_N)
    assert moved > 1
    assert np.linalg.norm(state.params_N - large.params_N) < 1e-5 * moved


# --- stopped and resumed = never stopped ---------------------------------------------------------


def resumed(directory, loops, state, config, dataset):
    """Return loops and state as new processes have them, from what the old ones left on disk."""
    store = StateStore(directory / "states", keep=2)
    store.save(state, manifest_of(state, run=RUN), now=0.0)
    new_state = initial_state(config)
    store.load_(new_state, round=state.round, run=RUN)
    new_loops = {}
    for peer, loop in loops.items():
        path = directory / f"{peer}.safetensors"
        moments = copy_moments(loop.optimizer, model=loop.model)
        save_optimizer(path, moments, num_steps=loop.steps_since_fresh)
        new_loops[peer] = fresh_loop(config, Batches(dataset, seed=config.seed))
        new = new_loops[peer]
        load_flat_(new.model, new_state.params_N, layout_of(new.config))
        new.steps_since_fresh = load_optimizer_(path, new.optimizer, model=new.model)
    return new_loops, new_state


@pytest.mark.parametrize("codec", ["int8", "bf16"])
def test_stopped_and_resumed_is_never_stopped(dataset, tmp_path, codec):
    outer = changed(CONFIG.outer, lr=0.7, momentum=0.9, momentum_warmup_rounds=2)
    config = changed(with_codec(CONFIG, codec), outer=outer)
    loops = {p: fresh_loop(config, Batches(dataset, seed=config.seed)) for p in (ANNA, BEN)}
    state = initial_state(config)

    def run(loops, state, *, rounds):
        digests = []
        for number in rounds:
            made = {
                peer: train_round(loop, state, samples_of(number, place=place, num_peers=2))[0]
                for place, (peer, loop) in enumerate(loops.items())
            }
            commit_(state, made, config)
            digests.append(manifest_of(state, run=RUN).digest)
        return digests

    run(loops, state, rounds=(0, 1))
    new_loops, new_state = resumed(tmp_path, loops, copy_of(state), config, dataset)
    never_stopped = run(loops, state, rounds=(2, 3))
    assert run(new_loops, new_state, rounds=(2, 3)) == never_stopped
