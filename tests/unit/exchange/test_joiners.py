"""Who has a place among the joiners that a member serves."""

from atoll.exchange.joiners import AT_ONCE, AWAY_S, Joiners
from atoll.ids import PeerId

PEERS = [PeerId(f"{number:032x}") for number in range(AT_ONCE + 1)]
LAST = PEERS[-1]


def test_a_place_is_free_when_its_joiner_asks_for_nothing_any_more():
    now = 0.0
    joiners = Joiners(lambda: now)
    assert [joiners.admit(peer) for peer in PEERS] == [True] * AT_ONCE + [False]
    now = AWAY_S - 1
    assert all(joiners.admit(peer) for peer in PEERS[1:-1]), "they go on"
    assert not joiners.admit(LAST)
    now = AWAY_S + 1
    assert joiners.admit(LAST)
    assert not joiners.admit(PEERS[0]), "it comes too late"


def test_a_place_is_kept_for_as_long_as_a_request_takes():
    now = 0.0
    joiners = Joiners(lambda: now)
    for peer in PEERS[:-1]:
        joiners.admit(peer)
    with joiners.serving(PEERS[0]):
        with joiners.serving(PEERS[0]):
            now = 100 * AWAY_S
        now = 200 * AWAY_S
        assert all(joiners.admit(peer) for peer in PEERS[2:]), "of the others, nobody came back"
        assert not joiners.admit(PEERS[1])
    now += AWAY_S - 1
    assert joiners.admit(PEERS[0])
