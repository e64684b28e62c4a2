"""The benchmarks' peers in one process: where that is plain training, it must give the same.

Shapes: N values of the model.
"""

import numpy as np
import pytest
from benchmarks.replicas import Replica, diloco, steps_of
from msgspec.structs import replace as changed
from tests.numerics.diloco import CONFIG, flat, fresh_loop, initial_state

from atoll.data.batches import Batches
from atoll.exchange.codec import CODECS
from atoll.exchange.step import slices_of
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
    replica = Replica(config, Batches(dataset, seed=config.seed), place=0, num_peers=1)
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
