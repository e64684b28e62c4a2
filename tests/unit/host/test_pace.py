from statistics import median

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace
from tests.unit.host.scene import CONFIG, SYNC, A, B, C, D, Scene, state

from atoll.host.pace import MOST, inner_steps
from atoll.ids import RoundId
from atoll.net import records, wire

H = 100
speeds = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(
    ("by_peer", "steps"),
    [
        ({A: 10.0}, [100]),
        ({A: 10.0, B: 10.0, C: 10.0}, [100, 100, 100]),
        ({A: 10.0, B: 30.0, C: 2.5}, [100, 300, 25]),
        ({A: 1.0, B: 2.0}, [66, 133]),  # the median is between them
        ({A: 10.0, B: 10.0, C: 1000.0, D: 0.01}, [100, 100, MOST * H, 1]),
    ],
)
def test_the_median_peer_makes_h_steps_and_the_others_what_they_manage(by_peer, steps):
    middle = median(by_peer.values())
    assert [inner_steps(speed, middle, num_steps=H) for speed in by_peer.values()] == steps


def test_a_peer_of_unknown_speed_begins_with_a_few():
    assert inner_steps(None, 10.0, num_steps=H) == 12
    assert inner_steps(None, None, num_steps=3) == 1
    assert inner_steps(10.0, None, num_steps=H) == 12, "nobody's was known when the round opened"


@given(st.lists(speeds, min_size=1, max_size=4), st.integers(1, 500))
def test_nobody_within_the_limits_takes_longer_than_the_median_peer(values, num_steps):
    by_peer = dict(zip((A, B, C, D), values, strict=False))
    middle_s = num_steps / sorted(values)[len(values) // 2]  # of the slower of two in the middle
    if len(values) % 2 == 0:
        middle_s = 2 * num_steps / sum(sorted(values)[len(values) // 2 - 1 :][:2])
    for speed in values:
        steps = inner_steps(speed, median(by_peer.values()), num_steps=num_steps)
        assert 1 <= steps <= MOST * num_steps
        assert steps == 1 or steps / speed <= middle_s * (1 + 1e-9)
        in_reach = steps < MOST * num_steps
        assert not in_reach or (steps + 1) / speed > middle_s * (1 - 1e-9)


@given(st.lists(speeds, min_size=2, max_size=4), st.sampled_from([2.0**-3, 2.0, 2.0**10]))
def test_only_ratios_count(values, unit):
    middle = median(values)
    for speed in values:
        steps = inner_steps(speed, middle, num_steps=H)
        assert inner_steps(unit * speed, unit * middle, num_steps=H) == steps


# --- in a run ------------------------------------------------------------------------------------

BY_TIME = replace(SYNC, pace="time", inner_steps=16, rounds=100)


def reports(scene: Scene, peer, round_id, samples_per_s):
    at = wire.AtState(
        round=RoundId(round_id), state=state(round_id), device="cpu", samples_per_s=samples_per_s
    )
    scene.says(peer, at)


def commit_round(scene: Scene, speeds, *, num_leases=None):
    """Let a round of these peers be committed, and let them say how fast they are."""
    scene.delivers(*speeds, num_leases=num_leases)
    scene.commits(*speeds)
    for peer, speed in speeds.items():
        reports(scene, peer, scene.run.committed, speed)


def steps_held(scene: Scene, peer):
    """Return how many inner steps each lease of the peer is."""
    batch = scene.run.config.inner.batch_sequences
    return [(one.stop - one.start) / batch for one in scene.run.book.held_by(peer)]


def test_work_and_tokens_follow_from_the_speeds_that_peers_report():
    scene = Scene.of(BY_TIME)
    scene.join(A, B, C)
    assert [steps_held(scene, peer) for peer in (A, B, C)] == [[2], [2], [2]]  # nobody knows yet
    commit_round(scene, {A: 10.0, B: 40.0, C: 2.5})
    assert [steps_held(scene, peer) for peer in (A, B, C)] == [[16], [64], [4]]
    samples = {peer: num * CONFIG.inner.batch_sequences for peer, num in ((A, 16), (B, 64), (C, 4))}
    assert scene.run.round.work == samples
    commit_round(scene, {A: 10.0, B: 10.0, C: 10.0})
    tokens = [entry.num_tokens for entry in scene.recorded(records.Committed)[-1].roster]
    length = CONFIG.data.sequence_length
    assert tokens == [samples[peer] * length for peer in (A, B, C)]
    assert [steps_held(scene, peer) for peer in (A, B, C)] == [[16], [16], [16]]


def test_a_plan_that_comes_again_asks_for_the_same_work():
    scene = Scene.of(BY_TIME)
    scene.join(A, B)
    commit_round(scene, {A: 10.0, B: 10.0})
    reports(scene, A, 1, 80.0)
    (plan,) = scene.sent(wire.Plan, to=A)
    assert plan.num_samples == 16 * CONFIG.inner.batch_sequences
    assert steps_held(scene, A) == [16]


def test_by_steps_speeds_change_nothing():
    scene = Scene.of(SYNC)
    scene.join(A, B)
    commit_round(scene, {A: 10.0, B: 40.0})
    assert steps_held(scene, A) == steps_held(scene, B) == [SYNC.inner_steps]


def test_overlapped_a_peer_that_became_slower_ends_what_it_holds_and_then_has_less():
    scene = Scene.of(replace(BY_TIME, mode="overlap"))
    scene.join(A, B, C)
    commit_round(scene, {A: 10.0, B: 10.0, C: 10.0}, num_leases=1)
    assert steps_held(scene, C) == [2, 14, 16]
    commit_round(scene, {A: 10.0, B: 10.0, C: 2.5}, num_leases=2)
    assert steps_held(scene, C) == [16]
    commit_round(scene, {A: 10.0, B: 10.0, C: 2.5}, num_leases=1)
    assert steps_held(scene, C) == [4, 4]


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_speed_is_none(speed):
    scene = Scene.of(BY_TIME)
    scene.join(A, B)
    commit_round(scene, {A: 10.0, B: speed})
    assert steps_held(scene, A) == [16]
    assert steps_held(scene, B) == [2]


def test_the_grace_time_remembers_how_long_rounds_were():
    scene = Scene.of(SYNC)
    scene.join(A, B, C)
    for wait_s in (30.0, 10.0):
        scene.passes(wait_s)
        commit_round(scene, dict.fromkeys((A, B, C), 1.0))
    assert scene.run.usual_wait_s == scene.run.round.usual_wait_s == 20.0
    scene.passes(1.0)
    scene.delivers(A, B)
    scene.passes(11.9)  # 2 s and half of the usual 20 s, not of the one second until now
    assert not scene.run.round.roster
    scene.passes(0.1)
    assert len(scene.run.round.roster) == 2
