"""What a member has measured of others, and tells the host once."""

import pytest

from atoll.exchange.round_trips import KEPT, RoundTrips
from atoll.ids import PeerId

A, B = PeerId("a" * 32), PeerId("b" * 32)


def told(trips: RoundTrips) -> dict[PeerId, float]:
    return {one.peer: one.seconds for one in trips.news()}


def test_each_is_told_once_and_all_of_them_to_a_host_that_welcomes_us():
    trips = RoundTrips()
    trips.note(A, 0.1)
    trips.note(B, None)  # the transport does not tell
    assert A in trips
    assert B not in trips
    assert told(trips) == {A: 0.1}
    assert told(trips) == {}
    trips.note(B, 0.2)
    assert told(trips) == {B: 0.2}
    trips.tell_again()
    assert told(trips) == {A: 0.1, B: 0.2}


def test_a_longer_one_counts_half_and_only_what_has_changed_is_news():
    trips = RoundTrips()
    trips.note(A, 0.1)
    trips.news()
    trips.note(A, 0.11)
    assert told(trips) == {}
    trips.note(A, 0.3)
    assert told(trips) == {A: pytest.approx(0.2025)}
    trips.note(A, 0.05)
    assert told(trips) == {A: 0.05}


def test_of_the_last_ones_so_many_as_one_message_may_tell():
    trips = RoundTrips()
    peers = [PeerId(f"{number:032x}") for number in range(KEPT + 3)]
    for peer in peers:
        trips.note(peer, 0.1)
    assert list(told(trips)) == peers[3:]
