"""Which pace all that leaves us has, round after round, and which part joiners have of it."""

from contextlib import ExitStack
from math import inf

import pytest
from hypothesis import given, strategies as st
from tests.unit.exchange.cast import A
from tests.unit.memory import MemoryTransport, Network, pair

from atoll.exchange.uplink import (
    FIRST_STEP,
    JOINERS_ALONE,
    PART,
    ROUNDS,
    SLOWEST_BYTES_PER_S,
    STEP,
    UNPACED_BYTES_PER_S,
    Pace,
    Uplink,
    after_round,
)
from atoll.ids import PeerId

RATE = 4e6


def connections(count):
    """Return connections to as many members."""
    return [pair(Network(), A, PeerId(f"member {number}"))[0] for number in range(count)]


def transport():
    return MemoryTransport(Network(), A)


def paced():
    """Return an uplink after its first round, which had no pace."""
    uplink = Uplink(transport())
    uplink.end_round(RATE, best=RATE, is_sure=True)
    return uplink


# --- the pace of all -----------------------------------------------------------------------------


def test_the_first_round_has_no_pace_and_the_next_one_that_of_the_line():
    ours = transport()
    uplink = Uplink(ours)
    assert ours.paced is None
    uplink.end_round(RATE, best=RATE, is_sure=True)
    assert ours.paced == RATE


def test_a_pace_that_a_round_has_not_followed_is_followed_by_one_below_the_line():
    pace = after_round(Pace(1.2 * RATE), rate=RATE, best=RATE)
    assert pace.bytes_per_s == pytest.approx(PART * RATE)


def test_rounds_with_slow_partners_do_not_lower_the_pace_until_they_are_all_that_counts():
    ours = transport()
    uplink = Uplink(ours)
    uplink.end_round(RATE, best=RATE, is_sure=True)
    for _ in range(ROUNDS - 1):
        uplink.end_round(0.3 * RATE, best=RATE, is_sure=True)
        assert ours.paced == pytest.approx(PART * RATE)
    uplink.end_round(0.3 * RATE, best=0.3 * RATE, is_sure=True)
    assert ours.paced == pytest.approx(PART * 0.3 * RATE)


def test_a_very_fast_line_is_not_paced_any_more():
    ours = transport()
    uplink = Uplink(ours)
    uplink.end_round(RATE, best=RATE, is_sure=True)
    uplink.end_round(2 * UNPACED_BYTES_PER_S, best=2 * UNPACED_BYTES_PER_S, is_sure=True)
    assert ours.paced == inf


def test_a_round_too_short_for_a_window_is_followed_by_one_without_a_pace():
    ours = transport()
    uplink = Uplink(ours)
    uplink.end_round(RATE, best=RATE, is_sure=True)
    uplink.end_round(0.9 * RATE, best=RATE, is_sure=False)
    assert ours.paced == inf


def test_no_pace_is_below_the_slowest():
    ours = transport()
    Uplink(ours).end_round(100.0, best=100.0, is_sure=True)
    assert ours.paced == SLOWEST_BYTES_PER_S


def test_rounds_that_follow_their_pace_are_followed_by_ever_faster_ones():
    pace = after_round(Pace(), rate=RATE, best=RATE)
    for step in (FIRST_STEP, 2 * FIRST_STEP, 4 * FIRST_STEP):
        before = pace.bytes_per_s
        pace = after_round(pace, rate=before, best=before)
        assert pace.bytes_per_s == pytest.approx(before * (1 + step))
    before = pace.bytes_per_s
    pace = after_round(pace, rate=before / 2, best=before / 2)
    assert pace == Pace(PART * before / 2, STEP)


@given(
    line=st.floats(1e4, UNPACED_BYTES_PER_S / 2),
    start=st.floats(0.01, 100),
    errors=st.lists(st.floats(0.985, 1.05), min_size=40, max_size=40),
)
def test_from_whatever_rate_the_pace_comes_near_that_of_the_line_and_stays(line, start, errors):
    """`start`: the first pace, as a part of the line's rate; `errors`: of what is measured."""
    pace, before = Pace(start * line), 0.0
    for number, error in enumerate(errors):
        rate = error * min(line, pace.bytes_per_s)
        pace = after_round(pace, rate=rate, best=max(rate, before))
        before = rate
        if number > 25:
            assert 0.9 * line <= pace.bytes_per_s <= 2.2 * line


# --- joiners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_joiners", [1, 2, 7])
def test_all_joiners_together_have_a_tenth_of_the_part_of_one_member(num_joiners):
    uplink = paced()
    ours = connections(2 + num_joiners)
    with ExitStack() as flows:
        for number, connection in enumerate(ours):
            flows.enter_context(uplink.flow(connection, to_joiner=number >= 2))
        joining = [connection.paced for connection in ours[2:]]
        assert len(set(joining)) == 1
        assert sum(joining) == pytest.approx(0.1 * RATE / 2.1)
        assert ours[0].paced is None, "members have what joiners leave"


def test_two_flows_to_one_member_are_one_member():
    uplink = paced()
    slices, joiner = connections(2)
    (updates,) = connections(1)
    with uplink.flow(slices), uplink.flow(updates), uplink.flow(joiner, to_joiner=True):
        assert joiner.paced == pytest.approx(0.1 * RATE / 1.1)


def test_while_nobody_exchanges_joiners_have_most_of_the_line():
    uplink = paced()
    one, other = connections(2)
    with uplink.flow(one, to_joiner=True), uplink.flow(other, to_joiner=True):
        assert one.paced == other.paced == pytest.approx(JOINERS_ALONE * RATE / 2)


def test_joiners_have_more_again_when_a_member_fails():
    uplink = paced()
    joiner, member = connections(2)
    with uplink.flow(joiner, to_joiner=True):
        with pytest.raises(OSError, match="gone"), uplink.flow(member):
            raise OSError("gone")
        assert joiner.paced == pytest.approx(JOINERS_ALONE * RATE)


def test_who_joined_on_a_connection_and_is_a_member_now_has_no_joiners_pace():
    uplink = paced()
    (connection,) = connections(1)
    with uplink.flow(connection, to_joiner=True):
        assert connection.paced == pytest.approx(JOINERS_ALONE * RATE)
    assert connection.paced == inf


def test_on_a_line_of_which_nothing_is_known_joiners_are_not_paced():
    uplink = Uplink(transport())
    (joiner,) = connections(1)
    with uplink.flow(joiner, to_joiner=True):
        assert joiner.paced == inf
