"""Who reduces what, where the members are divided into regions."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from atoll.exchange import plan, regions
from atoll.exchange.dials import BUNDLES, LARGEST, MOST_DIALS
from atoll.exchange.plan import Link
from atoll.exchange.positions import Position
from atoll.exchange.regions import (
    CELL_S,
    SPARES,
    Division,
    Volumes,
    assign_places,
    by_distance,
    divide,
    reassign_places,
)
from atoll.exchange.tree import Tree
from atoll.ids import PeerId, peer_id_of

VOLUMES = Volumes(contribution=100, update=100, partial=400)


def peer(number: int) -> PeerId:
    return PeerId(f"{number:032x}")


def division(
    num_peers: int, *, size: int, num_slices: int = 1, every: int = 1, fan_in: int | None = None
) -> Division:
    """Return peers of one kind, every so many of which can be reached."""
    peers = [peer(number) for number in range(num_peers)]
    reducers = peers[::every]
    tree, of_peers = divide(peers, reducers, positions={}, size=size, num_slices=num_slices)
    if fan_in is not None:
        tree = Tree.over(num_slices, num_regions=tree.num_regions, fan_in=fan_in)
    return Division(
        tree=tree,
        regions=of_peers,
        links={
            one: Link(peer=one, up=1.0, down=1.0, contributes=True, reduces=one in reducers)
            for one in peers
        },
        reducers=reducers,
        volumes=VOLUMES,
    )


divisions = st.builds(
    lambda num_peers, size, num_slices, every, fan_in: division(
        num_peers, size=size, num_slices=num_slices, every=every, fan_in=fan_in
    ),
    st.integers(1, 60),
    st.integers(0, 9),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(2, 5),
)


def test_there_are_regions_only_for_more_than_fit_into_one_and_who_can_reduce_them():
    def count(num_members: int, num_reducers: int, size: int) -> int:
        return regions.count_regions(num_members, num_reducers, size=size)

    assert count(64, 64, 64) == 1
    assert count(65, 65, 64) == 2
    assert count(10_000, 5_000, 64) == 157
    assert count(10_000, 3, 64) == 3
    assert count(10_000, 1, 64) == 1
    assert count(10_000, 5_000, 0) == 1


def test_with_one_region_all_is_as_without():
    one = division(20, size=64, num_slices=6)
    shares = plan.shares_of_work(
        list(one.links.values()),
        contribution_bytes=VOLUMES.contribution,
        update_bytes=VOLUMES.update,
    )
    assert assign_places(one) == plan.assign_by_shares(6, shares)
    lost = frozenset(assign_places(one)[:1])
    left = [other for other in one.reducers if other not in lost]
    again = Division(one.tree, one.regions, one.links, left, VOLUMES)
    expected = plan.reassign(assign_places(one), lost=lost, reducers=left)
    assert set(reassign_places(again, assign_places(one), lost=lost)) == set(expected)


@settings(deadline=None, max_examples=50)
@given(divisions)
def test_a_region_is_reduced_by_its_own_where_it_has_anybody(division):
    assignment = assign_places(division)
    assert len(assignment) == division.tree.num_places
    assert set(assignment) <= set(division.reducers)
    if division.tree.num_regions == 1:
        return
    able = Counter(division.regions[one] for one in division.reducers)
    for group in range(division.tree.num_regions):
        reducers = {assignment[place] for place in division.tree.places(group)}
        if able[group]:
            assert {division.regions[one] for one in reducers} == {group}


@settings(deadline=None, max_examples=50)
@given(divisions, st.data())
def test_only_the_places_of_lost_reducers_move(division, data):
    before = assign_places(division)
    lost = frozenset(data.draw(st.sets(st.sampled_from(sorted(set(before))))))
    left = [one for one in division.reducers if one not in lost]
    if not left:
        return
    after = reassign_places(
        Division(division.tree, division.regions, division.links, left, VOLUMES), before, lost=lost
    )
    assert lost.isdisjoint(after)
    assert all(new == old for old, new in zip(before, after, strict=True) if old not in lost)


def test_who_reduces_above_the_regions_reduces_none_where_others_can():
    one = division(40, size=8)
    assignment = assign_places(one)
    assert len(set(assignment)) == len(assignment) == 6, "five regions and the root"


def test_whoever_takes_over_a_region_reduces_nothing_above_where_others_can():
    one = division(40, size=8)
    before = assign_places(one)
    for lost in before[: one.tree.num_regions]:
        left = [peer for peer in one.reducers if peer != lost]
        without = Division(one.tree, one.regions, one.links, left, VOLUMES)
        after = reassign_places(without, before, lost=frozenset({lost}))
        assert len(set(after)) == len(after)


# --- how many others each has to talk to ---------------------------------------------------------


def groups_of(division: Division) -> dict[PeerId, int]:
    """Return to whose reducers each turns; who is in no region, to the root's."""
    root = division.tree.root
    groups = {one: division.regions.get(one, root) for one in division.links}
    return groups | {BUILT_IN: root}


def dials(
    tree: Tree, assignment: Sequence[PeerId], groups: Mapping[PeerId, int]
) -> Counter[PeerId]:
    """Return in how many dials each member is that turns to a group, or reduces; the host is one.

    `groups` are those to whose reducers members turn: a region, or the root.
    """
    pairs: set[tuple[PeerId, PeerId]] = set()  # who turns to whom
    reducers = [
        frozenset(assignment[place] for place in tree.places(group))
        for group in range(tree.num_groups)
    ]
    for peer, group in groups.items():
        pairs.update((peer, reducer) for reducer in reducers[group])
    for group in range(tree.root):
        parent = tree.parent(group)
        assert parent is not None, "it is below the root"
        for below, above in zip(tree.places(group), tree.places(parent), strict=True):
            pairs.add((assignment[below], assignment[above]))
            pairs.add((assignment[above], assignment[below]))
    result = Counter({*groups, *assignment})
    for one, other in pairs:
        if one != other:
            result.update((one, other))
    return result


def most_of(division: Division, assignment: tuple[PeerId, ...], but: set[PeerId]) -> int:
    """Return in how many dials one is at most, but for these and the built-in member."""
    counted = dials(division.tree, assignment, groups_of(division))
    return max(num for one, num in counted.items() if one not in but | {BUILT_IN})


def fleet(num_peers: int, num_slices: int, share_able: float, seed: int) -> Division:
    """Return peers here and there, with lines of all kinds, of whom so many can reduce."""
    rng = Random(seed)
    peers = [peer_id_of(rng.randbytes(32)) for _ in range(num_peers)]
    able = sorted(one for one in peers if rng.random() < share_able) or peers[:1]
    positions = {one: around(rng, PLACES) for one in peers if rng.random() < 0.7}
    tree, of_peers = divide(peers, able, positions=positions, size=LARGEST, num_slices=num_slices)
    among = frozenset(able)
    return Division(
        tree=tree,
        regions=of_peers,
        links={
            one: Link(
                peer=one,
                up=rng.choice((None, 1e6, 5e6, 1e8)),
                down=rng.choice((None, 1e7, 1e8)),
                contributes=True,
                reduces=one in among,
            )
            for one in peers
        },
        reducers=able,
        volumes=VOLUMES,
    )


def fewest(division: Division, some: Collection[PeerId]) -> int:
    """Return how many of these are in the region with the fewest of them."""
    if division.tree.num_regions == 1:
        return len(some)
    each = Counter(division.regions[one] for one in some)
    return min(each[region] for region in range(division.tree.num_regions))


def without(division: Division, lost: set[PeerId]) -> Division:
    return replace(division, reducers=[one for one in division.reducers if one not in lost])


fleets = st.builds(
    fleet,
    st.sampled_from((65, 66, 100, 129, 200, 333, 900)),
    st.sampled_from((1, 2, 7, BUNDLES, BUNDLES + 1, 32, 128)),
    st.floats(0.03, 1.0),
    st.integers(0, 2**32),
)


@pytest.mark.parametrize("num_peers", [1, 2, 17, LARGEST])
def test_where_all_are_in_one_region_all_reduce_who_can(num_peers):
    one = fleet(num_peers, 128, share_able=1.0, seed=1)
    even = replace(
        one, links={peer: replace(one.links[peer], up=1e7, down=1e7) for peer in one.links}
    )
    assert set(assign_places(even)) == set(one.links)


@settings(deadline=None, max_examples=60)
@given(fleets)
def test_nobody_has_more_than_some_dozens_to_talk_to(division):
    """As long as each region has enough who can reduce to spare one for the groups above."""
    if fewest(division, division.reducers) >= SPARES[0]:
        assert most_of(division, assign_places(division), set()) <= MOST_DIALS


@settings(deadline=None, max_examples=60)
@given(fleets, st.data())
def test_nor_whoever_is_lost(division, data):
    """As long as each region has somebody left who can reduce, and has nothing to do yet."""
    assignment, lost = assign_places(division), set[PeerId]()
    while fewest(division, set(division.reducers) - lost - set(assignment)) > 0:
        assert most_of(division, assignment, lost) <= MOST_DIALS
        gone = data.draw(st.sampled_from(sorted(set(assignment))))
        lost.add(gone)
        assignment = reassign_places(without(division, lost), assignment, lost=frozenset({gone}))
        if len(lost) > 12:
            break


@pytest.mark.parametrize(
    ("num_peers", "num_slices", "share_able"),
    [(10_000, 1, 0.25), (10_000, 32, 0.5), (4_000, 128, 1.0), (1_000, 128, 0.3), (65, 128, 1.0)],
)
def test_with_any_number_of_peers_of_whom_a_quarter_can_reduce_it_is_some_dozens(
    num_peers, num_slices, share_able
):
    division = fleet(num_peers, num_slices, share_able, seed=num_peers)
    assignment = assign_places(division)
    assert most_of(division, assignment, set()) <= MOST_DIALS
    lost = set(assignment[:: 20 * num_slices])
    after = reassign_places(without(division, lost), assignment, lost=frozenset(lost))
    assert most_of(division, after, lost) <= MOST_DIALS


def test_dials_are_those_of_members_and_of_reducers_above_and_below_each_other():
    a, b, c, d = (peer(number) for number in range(4))
    tree, groups = Tree(2, (2, 1)), {a: 0, b: 0, c: 1, d: 1, BUILT_IN: 2}
    assert dials(tree, (a, a, c, c, d, b), groups) == {
        a: 1 + 2 + 2,  # the host; of the root, slice by slice, d and b, who is a member as well
        b: 1 + 2 + 2 + 1,  # the host; a and c, who are below; the built-in member
        c: 1 + 2 + 2,
        d: 1 + 2 + 2 + 1,
        BUILT_IN: 1 + 2,
    }


# --- who is in which region ----------------------------------------------------------------------


def somebody(number: int) -> PeerId:
    return peer_id_of(number.to_bytes(32))


def around(rng: Random, middles: list[tuple[float, float, float]]) -> Position:
    """Return a position near one of these."""
    return Position(*(x + rng.gauss(0.0, CELL_S / 3) for x in rng.choice(middles)), 0.01)


BUILT_IN = somebody(2**200)
PLACES = [(0.1, 0.0, 0.0), (-0.1, 0.1, 0.0), (0.0, -0.12, 0.1)]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 120),
    st.integers(0, 20),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**32),
)
def test_all_are_in_one_region_and_none_is_too_large_if_enough_can_reduce(
    num_peers, size, share_placed, share_able, seed
):
    rng = Random(seed)
    peers = [somebody(number) for number in range(num_peers)]
    positions = {p: around(rng, PLACES) for p in peers if rng.random() < share_placed}
    reducers = [peer for peer in peers if rng.random() < share_able] or peers[:1]
    parts = by_distance(peers, reducers, positions=positions, size=size)
    assert sorted(peer for part in parts for peer in part) == sorted(peers)
    assert all(parts)
    assert len(parts) <= len(reducers)
    if size and len(by_distance(peers, peers, positions=positions, size=size)) <= len(reducers):
        assert max(map(len, parts)) <= size
    shuffled = rng.sample(peers, len(peers))
    assert by_distance(shuffled, set(reducers), positions=positions, size=size) == parts


def test_regions_are_of_members_that_are_near_each_other():
    rng = Random(1)
    peers = [somebody(number) for number in range(1000)]
    of_place = {peer: rng.randrange(3) for peer in peers}
    positions = {peer: around(rng, [PLACES[of_place[peer]]]) for peer in peers}
    parts = by_distance(peers, peers[::2], positions=positions, size=64)
    at_home = sum(max(Counter(of_place[peer] for peer in part).values()) for part in parts)
    assert at_home > 0.95 * len(peers)
    assert len(parts) < 2 * 1000 / 64


def test_whoever_comes_or_goes_changes_a_region_or_two():
    rng, size = Random(2), 16
    peers = [somebody(number) for number in range(400)]
    positions = {peer: around(rng, PLACES) for peer in peers[:300]}  # of the others none is known
    before = by_distance(peers, peers, positions=positions, size=size)
    companions = {peer: set(part) for part in before for peer in part}
    changed = []
    for gone in peers:
        left = [peer for peer in peers if peer != gone]
        after = by_distance(left, left, positions=positions, size=size)
        changed.append(
            sum(companions[peer] - {gone} != set(part) for part in after for peer in part)
        )
    assert max(changed) <= 3 * size
    assert sum(changed) / len(changed) < size / 4


def test_a_small_region_is_joined_with_the_one_beside_it_and_none_is_without_a_reducer():
    """Ten that are near each other, which are two regions by their ids, and some far from them."""
    near, far = Position(0.3, 0.0, 0.0, 0.0), Position(0.1, 0.0, 0.0, 0.0)
    ten = [PeerId(digit + f"{number:031x}") for digit in "08" for number in range(5)]
    some = [somebody(number) for number in range(3)]
    positions = dict.fromkeys(ten, near) | dict.fromkeys(some, far)

    def divided(members: list[PeerId], reducers: list[PeerId]) -> list[list[PeerId]]:
        return by_distance(members, reducers, positions=positions, size=8)

    def sizes(parts: list[list[PeerId]]) -> list[int]:
        return [len(part) for part in parts]

    assert sizes(divided(some + ten, some + ten)) == [3, 5, 5]
    assert sizes(divided(some[1:] + ten, some + ten)) == [7, 5]
    near_alone = divided(some + ten, ten)
    assert len(near_alone) == 2
    assert all(not set(ten).isdisjoint(part) for part in near_alone)
    assert sizes(divided(some + ten, ten[:1])) == [13]
    assert sizes(divided(some + ten, [BUILT_IN])) == [13], "who is no member can reduce, too"
    assert sizes(divided(some + ten, [BUILT_IN, ten[0]])) == [6, 7]
