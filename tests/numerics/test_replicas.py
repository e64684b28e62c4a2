"""The benchmarks' peers in one process: where that is plain training, it must give the same.

Shapes: N values of the model.
"""

import numpy as np
import pytest
from benchmarks.replicas import Fleet, Part, Replica, committed_steps, diloco, steps_of
from msgspec.structs import replace as changed
from tests.numerics.diloco import CONFIG, flat, fresh_loop, initial_state

from atoll.data.batches import Batches
from atoll.exchange.codec import CODECS
from atoll.exchange.sizes import slices_of
from atoll.ids import RoundId
from atoll.model.layout import layout_of

ROUNDS, INNER_STEPS = 3, 4


def run_config(*, mode, fragments):
    sync = changed(
        CONFIG.sync,
        rounds=ROUNDS * fragments,
        inner_steps=INNER_STEPS,
        mode=mode,
        fragments=fragments,
    )
    return changed(CONFIG, sync=sync)


def trained_alone(config, dataset):
    """Return the parameters after 0, 1, 2, ... steps without any exchange."""
    loop = fresh_loop(config, Batches(dataset, seed=config.seed))
    after = [flat(loop)]
    for step, spans in steps_of(config, place=0, num_peers=1):
        loop.step(spans, step=step)
        after.append(flat(loop))
    return after


@pytest.mark.parametrize(
    ("mode", "fragments", "arrival"),
    [("blocking", 1, 0.0), ("overlap", 1, 0.5), ("overlap", 1, 1.0), ("overlap", 2, 0.5)],
)
def test_one_peer_that_averages_with_nobody_trains_as_if_alone(dataset, mode, fragments, arrival):
    config = run_config(mode=mode, fragments=fragments)
    after = trained_alone(config, dataset)
    for each in diloco(config, dataset, num_peers=1, arrival=arrival):
        fragment = layout_of(config).fragment_of(each.id)
        part = slice(fragment.start, fragment.stop)
        expected_N = after[each.id * config.steps_per_round]
        np.testing.assert_array_equal(each.state.params_N[part], expected_N[part])


def test_peers_share_all_samples_and_none_twice():
    config = run_config(mode="overlap", fragments=2)
    taken = [
        sample
        for place in range(3)
        for _, spans in steps_of(config, place=place, num_peers=3)
        for start, stop in spans
        for sample in range(start, stop)
    ]
    assert sorted(taken) == list(range(3 * config.sync.rounds * config.samples_per_round))


def test_an_update_that_comes_late_changes_what_the_others_contribute(dataset):
    config = run_config(mode="overlap", fragments=1)
    on_time, late = (
        [each.state.params_N.copy() for each in diloco(config, dataset, num_peers=2, arrival=a)]
        for a in (0.0, 0.5)
    )
    assert np.array_equal(on_time[0], late[0])
    assert not np.array_equal(on_time[1], late[1])


def test_what_an_encoding_drops_is_kept_once_it_is_committed(dataset):
    config = run_config(mode="blocking", fragments=1)
    config = changed(config, sync=changed(config.sync, codec="int4"))
    layout, state = layout_of(config), initial_state(config)
    replica = Replica(
        config, Batches(dataset, seed=config.seed), steps_of(config, place=0, num_peers=1)
    )
    replica.train(upto=config.steps_per_round)
    replica.snapshot(layout.fragments[0])
    payloads = replica.contribution(state)
    assert not replica.kept_N.any()
    replica.take_over(state, layout.fragments[0])
    bounds = slices_of(layout, RoundId(1))
    decoded_N = np.concatenate(
        [
            CODECS["int4"].decode(payload, stop - start)
            for payload, (start, stop) in zip(payloads, bounds, strict=True)
        ]
    )
    delta_N = state.params_N - replica.vectors.snapshot_N
    assert replica.kept_N.any()
    np.testing.assert_allclose(decoded_N + replica.kept_N, delta_N, rtol=0, atol=1e-8)


# --- peers that come and go ----------------------------------------------------------------------

ALL = Part(INNER_STEPS)


def test_a_fleet_in_which_everybody_stays_is_diloco(dataset):
    config = run_config(mode="blocking", fragments=1)
    fleet = Fleet(config, dataset)
    for each in diloco(config, dataset, num_peers=3):
        fleet.round(dict.fromkeys(range(3), ALL))
        np.testing.assert_array_equal(fleet.state.params_N, each.state.params_N)
        np.testing.assert_array_equal(fleet.state.momentum_N, each.state.momentum_N)
        forked = fleet.fork(fleet.rule)
        np.testing.assert_array_equal(forked.state.params_N, each.state.params_N)


def test_a_fork_goes_on_as_the_fleet_does(dataset):
    config = run_config(mode="blocking", fragments=1)
    fleet = Fleet(config, dataset)
    fleet.round({0: ALL, 1: ALL})
    forked = fleet.fork(fleet.rule)
    for each in (fleet, forked):
        each.round({0: ALL, 1: Part(1)})
    np.testing.assert_array_equal(forked.state.params_N, fleet.state.params_N)
    assert forked.num_committed == fleet.num_committed


def test_samples_are_committed_once_whoever_is_late_or_lost(dataset):
    config = run_config(mode="blocking", fragments=1)
    script = [
        {0: ALL, 1: Part(2, "late"), 2: Part(1, "lost")},
        {0: ALL, 1: Part(2), 3: ALL},
        {0: ALL, 3: ALL},
    ]
    fleet = Fleet(config, dataset)
    batch = config.inner.batch_sequences
    committed = []
    for parts in script:
        fleet.round(parts)
        committed.append(fleet.num_committed // batch)
    assert committed == list(committed_steps(script)) == [4, 16, 24]
    assert not any(fleet.book.held.values())
    assert fleet.seen[1].share[max(fleet.seen[1].share)] == pytest.approx(1 / 3, abs=0.01)
