"""Which pace each connection has while flows begin and end."""

from contextlib import ExitStack
from math import inf

import pytest
from tests.unit.exchange.cast import A
from tests.unit.memory import Network, pair

from atoll.exchange.uplink import HEADROOM, JOINERS_ALONE, UNPACED_BYTES_PER_S, Uplink
from atoll.ids import PeerId

RATE = 1e6


def connections(count):
    """Return connections to as many members."""
    return [pair(Network(), A, PeerId(f"member {number}"))[0] for number in range(count)]


def test_flows_to_one_member_fit_into_its_share_together():
    uplink = Uplink(lambda: RATE)
    slices, elsewhere = connections(2)
    (updates,) = connections(1)
    with uplink.flow(slices), uplink.flow(elsewhere):
        with uplink.flow(updates):
            assert slices.paced == updates.paced == elsewhere.paced == HEADROOM * RATE / 2
        assert slices.paced == HEADROOM * RATE / 2
    with uplink.flow(updates):
        assert updates.paced == HEADROOM * RATE


def test_those_that_send_share_the_line_anew_when_one_begins_or_ends():
    uplink = Uplink(lambda: RATE)
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
    uplink = Uplink(lambda: RATE)
    ours = connections(2 + num_joiners)
    with ExitStack() as flows:
        for number, connection in enumerate(ours):
            flows.enter_context(uplink.flow(connection, to_joiner=number >= 2))
        joining = [connection.paced for connection in ours[2:]]
        assert len(set(joining)) == 1
        assert ours[0].paced == ours[1].paced == pytest.approx(HEADROOM * RATE / 2.1)
        assert sum(joining) == pytest.approx(0.1 * RATE / 2.1)


def test_while_nobody_exchanges_joiners_have_most_of_the_line():
    uplink = Uplink(lambda: RATE)
    one, other = connections(2)
    with uplink.flow(one, to_joiner=True), uplink.flow(other, to_joiner=True):
        assert one.paced == other.paced == pytest.approx(JOINERS_ALONE * RATE / 2)


def test_one_that_fails_gives_its_share_back():
    uplink = Uplink(lambda: RATE)
    one, other = connections(2)
    with uplink.flow(one):
        with pytest.raises(OSError, match="gone"), uplink.flow(other):
            raise OSError("gone")
        assert one.paced == HEADROOM * RATE


def test_a_line_of_which_nothing_is_known_is_not_paced():
    uplink = Uplink(lambda: None)
    one, other = connections(2)
    with uplink.flow(one), uplink.flow(other):
        assert one.paced is None
        assert other.paced is None


def test_a_very_fast_line_is_not_paced_any_more():
    rate = RATE
    uplink = Uplink(lambda: rate)
    (one,) = connections(1)
    with uplink.flow(one):
        assert one.paced == HEADROOM * RATE
    rate = 1.01 * UNPACED_BYTES_PER_S
    with uplink.flow(one):
        assert one.paced == inf


def test_the_newest_rate_counts_for_those_that_send_already():
    rate = None
    uplink = Uplink(lambda: rate)
    one, other = connections(2)
    with uplink.flow(one):
        assert one.paced is None
        rate = RATE
        with uplink.flow(other):
            assert one.paced == other.paced == HEADROOM * RATE / 2
