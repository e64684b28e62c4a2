"""Whatever numbers members say, the host goes on, and what it writes can be read again."""

from math import inf, nan

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, SYNC, A, B, Scene, contribution, state

from atoll.host.effects import Report
from atoll.host.numbers import (
    FASTEST,
    LARGEST_PEAK,
    LEAST_PEAK,
    SLOWEST,
    is_loss,
    peak_of,
    rate_of,
)
from atoll.ids import INITIAL, RoundId
from atoll.net import records, wire

NUMBERS = (0.0, -1.0, nan, inf, -inf, 5e-324, 1e-300, SLOWEST, 1.0, FASTEST, 1e300, 1.7e308)
numbers = st.sampled_from(NUMBERS)
rounds = st.sampled_from([-1, 0, 1, 2, 2**63, 2**64 - 1]).map(RoundId)
messages = st.one_of(
    st.builds(
        wire.AtState,
        round=st.just(INITIAL),
        state=st.just(state(0)),
        device=st.just("cpu"),
        up_bytes_per_s=numbers,
        down_bytes_per_s=numbers,
        samples_per_s=numbers,
        peak_flops=numbers,
    ),
    st.builds(contribution, st.just(A), round_id=rounds, loss=numbers),
    st.builds(
        wire.Delivered,
        round=rounds,
        contributor=st.sampled_from([A, B, BUILT_IN]),
        slice=st.sampled_from([0, 1, 2, 2**32 - 1]),
        digest=st.just(state(0)),
        squared_norm=numbers,
    ),
    st.builds(
        wire.Heartbeat,
        round=rounds,
        step=st.sampled_from([0, 1, 2**32 - 1]),
        loss=numbers,
        tokens_per_s=numbers,
    ),
    st.builds(wire.Evaluated, round=rounds, loss=numbers),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([A, B]), messages), min_size=10, max_size=30))
def test_nothing_that_members_say_is_an_error_of_the_host(said):
    scene = Scene.of(replace(SYNC, pace="time"))
    scene.join(BUILT_IN, A, B)
    reports = []
    for peer, message in said:
        scene.says(peer, message)
        reports += [effect.event for effect in scene.effects if isinstance(effect, Report)]
    scene.lost(A)  # its slices are dealt out by what is known of the lines
    for record in scene.journal:
        assert records.decode(records.encode(record)) == record
    for event in reports:
        assert msgspec.json.decode(msgspec.json.encode(event), type=type(event)) == event


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e300])
def test_work_is_shared_out_also_if_a_line_is_said_to_carry_all_but_nothing(rate):
    scene = Scene.of(SYNC, slice_bytes=((40, 40),))
    scene.join(BUILT_IN, A, B)
    report = wire.AtState(round=INITIAL, state=state(0), device="", up_bytes_per_s=rate)
    scene.says(A, replace(report, down_bytes_per_s=rate))
    scene.lost(B)
    assert set(scene.run.round.assignment) <= {A, BUILT_IN}


@pytest.mark.parametrize("number", [nan, inf, -inf, -1.0, 0.0, SLOWEST / 2, 2 * FASTEST])
def test_what_is_no_rate_is_none(number):
    assert rate_of(number) is None


def test_rates_are_what_was_said():
    assert [rate_of(number) for number in (SLOWEST, 1.0, FASTEST)] == [SLOWEST, 1.0, FASTEST]


@pytest.mark.parametrize("number", [nan, inf, -inf, -1e12, 0.0, LEAST_PEAK / 2, 2 * LARGEST_PEAK])
def test_what_is_no_peak_is_unknown(number):
    assert peak_of(number) == 0.0


def test_peaks_are_what_was_said():
    said = (LEAST_PEAK, 3e11, LARGEST_PEAK)
    assert [peak_of(number) for number in said] == list(said)


@pytest.mark.parametrize("number", [nan, inf, -inf, 1e201])
def test_what_is_no_loss(number):
    assert not is_loss(number)


def test_a_loss_may_be_large_and_of_any_sign():
    assert is_loss(-1.0)
    assert is_loss(1e60), "of weights that were multiplied by 1e30: its norm is clipped"
