"""Where members are, by what they have measured of each other: clusters, newcomers, liars."""

from itertools import combinations
from math import dist
from random import Random
from statistics import mean, median

from hypothesis import given, settings, strategies as st

from atoll.exchange.positions import MIN_TRIPS, Position, located
from atoll.ids import PeerId, peer_id_of

NUM_PLACES = 3
BETWEEN_S, LINE_S, JITTER_S = 0.18, (0.005, 0.012), 0.016


class World:
    """Members of three places far from each other, and what they measure."""

    def __init__(self, num: int, *, seed: int = 1) -> None:
        self.rng = Random(seed)
        self.peers = sorted(peer_id_of(bytes([seed]) + n.to_bytes(31)) for n in range(num))
        self.place = {peer: self.rng.randrange(NUM_PLACES) for peer in self.peers}
        self.line_s = {peer: self.rng.choice(LINE_S) for peer in self.peers}

    def measured(self, peer: PeerId, *, num: int = 12) -> dict[PeerId, float]:
        others = self.rng.sample([other for other in self.peers if other != peer], num)
        return {other: self.round_trip_s(peer, other) for other in others}

    def round_trip_s(self, one: PeerId, other: PeerId) -> float:
        apart_s = BETWEEN_S if self.place[one] != self.place[other] else 0.0
        lines_s = 2 * (self.line_s[one] + self.line_s[other])
        return lines_s + apart_s + self.rng.uniform(0.0, JITTER_S)

    def well_placed(self, found: dict[PeerId, Position], among: list[PeerId]) -> float:
        """Return the share of these that are nearest to the middle of those of their own place."""
        middles = [
            [median(found[p][axis] for p in among if self.place[p] == place) for axis in range(3)]
            for place in range(NUM_PLACES)
        ]
        right = 0
        for peer in among:
            away = [dist(found[peer][:3], middle) for middle in middles]
            right += away.index(min(away)) == self.place[peer]
        return right / len(among)


def test_members_of_one_place_are_found_near_each_other_and_far_from_the_others():
    world = World(300)
    found = located({}, {peer: world.measured(peer) for peer in world.peers})
    assert world.well_placed(found, world.peers) > 0.95
    off_s = []
    for one, other in combinations(world.peers[:100], 2):
        heights_s = found[one].height + found[other].height
        seconds = dist(found[one][:3], found[other][:3]) + heights_s
        off_s.append(abs(seconds - world.round_trip_s(one, other)))
    assert median(off_s) < 0.02


def test_liars_are_badly_placed_and_the_others_are_not():
    world = World(300)
    trips = {peer: world.measured(peer) for peer in world.peers}
    liars = set(world.rng.sample(world.peers, 30))
    for liar in liars:
        trips[liar] = {other: world.rng.uniform(1e-4, 2.0) for other in trips[liar]}
    honest = [peer for peer in world.peers if peer not in liars]
    found = located({}, trips)
    assert world.well_placed(found, honest) > 0.9


def test_what_one_member_says_moves_nobody_else_who_is_placed():
    world = World(100)
    trips = {peer: world.measured(peer) for peer in world.peers}
    before = settled(trips)
    liar = world.peers[0]
    after = located(before, trips | {liar: dict.fromkeys(trips[liar], 1.5)})
    assert after[liar] != before[liar]
    assert [peer for peer in before if after[peer] != before[peer]] == [liar]


def settled(trips: dict[PeerId, dict[PeerId, float]]) -> dict[PeerId, Position]:
    """Return positions of which none moves any more; whoever never fits is taken as it is."""
    found = located({}, trips)
    for _ in range(20):
        if (again := located(found, trips)) == found:
            return found
        found = again
    raise AssertionError("they move for ever")


def test_newcomers_move_nobody_and_are_placed_at_once():
    world = World(200)
    trips = {peer: world.measured(peer) for peer in world.peers}
    here, new = world.peers[:180], world.peers[180:]
    first = {p: {q: s for q, s in trips[p].items() if q in here} for p in here}
    before = located({}, first)
    still = {p for p in before if located(before, first)[p] == before[p]}
    after = located(before, trips)
    assert len(still) > 0.9 * len(here)
    assert mean(after[peer] == before[peer] for peer in still) > 0.95
    assert set(after) == set(world.peers)
    assert world.well_placed(after, new) > 0.9


def test_whoever_has_measured_too_few_is_nowhere():
    world = World(20)
    trips = {peer: world.measured(peer) for peer in world.peers}
    few = world.peers[0]
    trips[few] = dict(list(trips[few].items())[: MIN_TRIPS - 1])
    assert set(located({}, trips)) == set(world.peers[1:])
    assert located({}, {few: trips[few]}) == {}
    assert located({}, {}) == {}


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_whatever_is_told_positions_are_finite_and_the_same_again(data):
    peers = [peer_id_of(n.to_bytes(32)) for n in range(8)]
    seconds = st.floats(1e-6, 2.0)
    trips = {
        peer: data.draw(st.dictionaries(st.sampled_from([p for p in peers if p != peer]), seconds))
        for peer in peers
    }
    found = located({}, trips)
    assert found == located({}, trips)
    assert all(abs(number) < 100 for point in found.values() for number in point)
    again = located(found, trips)
    assert set(again) == set(found)
