"""Which pace each connection has while flows begin and end."""

from collections import deque
from contextlib import ExitStack
from math import inf

import pytest
from hypothesis import given, settings, strategies as st
from tests.unit.exchange.cast import A
from tests.unit.memory import Network, pair

from atoll.exchange.uplink import (
    CLOSE,
    HEADROOM,
    JOINERS_ALONE,
    SLOWER,
    UNPACED_BYTES_PER_S,
    Uplink,
)
from atoll.ids import PeerId

RATE = 1e6


def connections(count):
    """Return connections to as many members."""
    return [pair(Network(), A, PeerId(f"member {number}"))[0] for number in range(count)]


def test_flows_to_one_member_fit_into_its_share_together():
    uplink = paced()
    slices, elsewhere = connections(2)
    (updates,) = connections(1)
    with uplink.flow(slices), uplink.flow(elsewhere):
        with uplink.flow(updates):
            assert slices.paced == updates.paced == elsewhere.paced == HEADROOM * RATE / 2
        assert slices.paced == HEADROOM * RATE / 2
    with uplink.flow(updates):
        assert updates.paced == HEADROOM * RATE


def paced(rate=lambda: RATE):
    """Return an uplink after its first round, which had no pace."""
    uplink = Uplink(rate)
    uplink.end_round(RATE)
    return uplink


def test_those_that_send_share_the_line_anew_when_one_begins_or_ends():
    uplink = paced()
    one, other = connections(2)
    with uplink.flow(one):
        assert one.paced == HEADROOM * RATE
        with uplink.flow(other):
            assert one.paced == other.paced == HEADROOM * RATE / 2
        assert one.paced == HEADROOM * RATE
    with uplink.flow(other):
        assert other.paced == HEADROOM * RATE


@pytest.mark.parametrize("num_joiners", [1, 2, 7])
def test_all_joiners_together_have_a_tenth_of_the_pace_of_one_flow(num_joiners):
    uplink = paced()
    ours = connections(2 + num_joiners)
    with ExitStack() as flows:
        for number, connection in enumerate(ours):
            flows.enter_context(uplink.flow(connection, to_joiner=number >= 2))
        joining = [connection.paced for connection in ours[2:]]
        assert len(set(joining)) == 1
        assert ours[0].paced == ours[1].paced == pytest.approx(HEADROOM * RATE / 2.1)
        assert sum(joining) == pytest.approx(0.1 * RATE / 2.1)


def test_while_nobody_exchanges_joiners_have_most_of_the_line():
    uplink = paced()
    one, other = connections(2)
    with uplink.flow(one, to_joiner=True), uplink.flow(other, to_joiner=True):
        assert one.paced == other.paced == pytest.approx(JOINERS_ALONE * RATE / 2)


def test_one_that_fails_gives_its_share_back():
    uplink = paced()
    one, other = connections(2)
    with uplink.flow(one):
        with pytest.raises(OSError, match="gone"), uplink.flow(other):
            raise OSError("gone")
        assert one.paced == HEADROOM * RATE


def test_among_a_thousand_flows_one_more_need_not_tell_all_others():
    class Counting:
        """What an uplink asks of a connection; it counts how often it is told a pace."""

        told = 0

        def __init__(self, peer):
            self.peer = peer

        def pace(self, bytes_per_s):
            self.paced = bytes_per_s
            Counting.told += 1

    uplink, num_flows = paced(), 1000
    ours = [Counting(PeerId(f"member {number}")) for number in range(num_flows)]
    with ExitStack() as flows:
        for connection in ours:
            flows.enter_context(uplink.flow(connection))
        paces = [connection.paced for connection in ours]
        share = HEADROOM * RATE / num_flows
        assert all(share * (1 - CLOSE) <= pace <= share * (1 + 2 * CLOSE) for pace in paces)
    assert Counting.told < 100 * num_flows  # a million, if each told all the others


def test_a_line_of_which_nothing_is_known_is_not_paced():
    uplink = Uplink(lambda: None)
    one, other = connections(2)
    with uplink.flow(one), uplink.flow(other):
        assert one.paced is None
        assert other.paced is None


def test_a_very_fast_line_is_not_paced_any_more():
    rate = RATE
    uplink = paced(lambda: rate)
    (one,) = connections(1)
    with uplink.flow(one):
        assert one.paced == HEADROOM * RATE
    rate = 1.01 * UNPACED_BYTES_PER_S
    with uplink.flow(one):
        assert one.paced == inf


def test_the_newest_rate_counts_for_those_that_send_already():
    rate = None
    uplink = paced(lambda: rate)
    one, other = connections(2)
    with uplink.flow(one):
        assert one.paced is None
        rate = RATE
        with uplink.flow(other):
            assert one.paced == other.paced == HEADROOM * RATE / 2


def pace_of(uplink):
    (one,) = connections(1)
    with uplink.flow(one):
        return one.paced


@pytest.mark.parametrize("factor", [0.5, 1.08])
def test_a_round_that_is_slower_or_faster_than_without_a_pace_is_followed_by_one_without(factor):
    uplink = paced()
    assert pace_of(uplink) == HEADROOM * RATE
    uplink.end_round(0.9 * RATE)
    assert pace_of(uplink) == HEADROOM * RATE
    uplink.end_round(factor * RATE)
    assert pace_of(uplink) == inf
    uplink.end_round(factor * RATE)
    assert pace_of(uplink) == HEADROOM * RATE, "now that is what the line can do"


def test_the_joiners_of_a_round_without_a_pace_have_one():
    uplink = Uplink(lambda: RATE)
    one, joiner = connections(2)
    with uplink.flow(one), uplink.flow(joiner, to_joiner=True):
        assert one.paced == inf
        assert joiner.paced == pytest.approx(RATE * 0.1 / 1.1)


@settings(deadline=None)
@given(
    num_fast=st.integers(1, 12),
    num_slow=st.integers(0, 6),
    slow=st.floats(1e-4, 1),
    rounds=st.integers(1, 40),
)
def test_receivers_that_do_not_use_their_part_do_not_slow_the_others_down_for_long(
    num_fast, num_slow, slow, rounds
):
    """A line of rate 1: each flow has its pace, or if there is none, what the slow ones leave."""
    rates = deque(maxlen=2)
    uplink = Uplink(lambda: max(rates, default=None))
    flows = connections(num_fast + num_slow)
    part = 1 / len(flows)
    for _ in range(rounds):
        with ExitStack() as stack:
            for flow in flows:
                stack.enter_context(uplink.flow(flow))
            paces = [inf if flow.paced is None else flow.paced for flow in flows]
        fast = sum(paces[:num_fast])
        rate = min(1.0, fast + sum(min(slow * part, pace) for pace in paces[num_fast:]))
        rates.append(rate)
        uplink.end_round(rate)
        assert max(rates) >= SLOWER
