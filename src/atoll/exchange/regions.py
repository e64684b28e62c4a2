"""Who is in which region, and who reduces which place of the tree. Pure.

    members --by_distance--> regions --assign_places--> the reducer of each place
                                      reassign_places

Each member has a way: the cell of the world that it is in, halved again and again, axis by axis,
and then its id, bit by bit. Whoever has no position is in a world of its own. Members that have the
beginning of their way in common are a region if they are no more than fit into one; else they are
two parts, by the first bit that leaves somebody in both who can reduce, and so on. So regions are
near each other inside, follow from who is where and from nothing else, and whoever comes or goes
changes its own region, and now and then the one beside it.

A region is reduced by those of its own members who can; where there are none, by some of all who
can. A level above, a group's reducers are the heads of the regions below it: of each region the
one with the least to reduce. What each of them takes on follows from the lines (plan.py).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from atoll.exchange import plan
from atoll.exchange.plan import Link
from atoll.exchange.positions import Position
from atoll.exchange.tree import Tree, divided
from atoll.ids import PeerId

CELL_S: Final = 0.032  # members of one cell are near each other
CELL_BITS: Final = 6  # 64 cells on each axis; the outermost reach to the end of the world
ID_BITS: Final = 128
WAY_BITS: Final = 1 + 3 * CELL_BITS + ID_BITS
SMALL: Final = 4  # a region with a fourth of what fits, or less, is joined with one beside it


@dataclass(frozen=True)
class Volumes:
    """The bytes of a contribution to a round's fragment, of its updates, and of a partial sum."""

    contribution: int
    update: int
    partial: int


@dataclass(frozen=True)
class Division:
    """Who takes part in a round's exchange, in which region, and what there is to move.

    Whoever is in no region turns to the root; if there is one region only, nobody is in it.
    `reducers` are those who can reduce, in the order of their ids.
    """

    tree: Tree
    regions: Mapping[PeerId, int]
    links: Mapping[PeerId, Link]
    reducers: Sequence[PeerId]
    volumes: Volumes


def count_regions(num_members: int, num_reducers: int, *, size: int) -> int:
    """Return into how many regions these are divided, of at most `size`; 0: all are in one.

    There are no more than have somebody to reduce them.
    """
    if not 0 < size < num_members:
        return 1
    return max(1, min(-(-num_members // size), num_reducers))


def by_distance(
    members: Iterable[PeerId],
    reducers: Collection[PeerId],
    *,
    positions: Mapping[PeerId, Position],
    size: int,
) -> list[list[PeerId]]:
    """Return the members of each region, at most `size` in one; 0: all are in one.

    There are no more regions than have somebody to reduce them: with few of these they are larger.
    """
    way = {peer: _way(peer, positions.get(peer)) for peer in members}
    in_order = sorted(way, key=lambda peer: (way[peer], peer))
    if not 0 < size < len(in_order):
        return [in_order]
    among = frozenset(reducers)

    def parts_of(some: list[PeerId], bit: int) -> list[list[PeerId]]:
        if len(some) <= size:
            return [some]
        if len(among.intersection(some)) < 2:
            return [list(part) for part in divided(some, -(-len(some) // size))]
        left = [peer for peer in some if not way[peer] >> bit & 1]
        right = [peer for peer in some if way[peer] >> bit & 1]
        if among.isdisjoint(left) or among.isdisjoint(right):
            return parts_of(some, bit - 1)
        return joined(parts_of(left, bit - 1), parts_of(right, bit - 1))

    def joined(left: list[list[PeerId]], right: list[list[PeerId]]) -> list[list[PeerId]]:
        one, other = left[-1], right[0]
        is_small = min(len(one), len(other)) <= size // SMALL
        if not is_small or len(one) + len(other) > size:
            return left + right
        return [*left[:-1], one + other, *right[1:]]

    parts = parts_of(in_order, WAY_BITS - 1)
    if len(parts) <= len(among):
        return parts
    num_regions = count_regions(len(in_order), len(among), size=size)
    return [list(part) for part in divided(in_order, num_regions)]


def _way(peer: PeerId, position: Position | None) -> int:
    """Return the bits of a member's way, the first of them the highest."""
    cells = [0, 0, 0]
    if position is not None:
        half = 1 << (CELL_BITS - 1)
        cells = [min(max(round(x / CELL_S) + half, 0), 2 * half - 1) for x in position[:3]]
    way = int(position is None)
    for bit in reversed(range(CELL_BITS)):
        for cell in cells:
            way = way << 1 | cell >> bit & 1
    return way << ID_BITS | int(peer, 16)


def numbered(parts: Sequence[Sequence[PeerId]]) -> dict[PeerId, int]:
    """Return the region of each member; if there is one only, nobody is in it."""
    if len(parts) == 1:
        return {}
    return {peer: region for region, part in enumerate(parts) for peer in part}


def by_id(members: Sequence[PeerId], num_regions: int) -> dict[PeerId, int]:
    """Return the region of each of these members, equally large, in the order of their ids."""
    if num_regions == 1:
        return {}
    parts = divided(sorted(members), num_regions)
    return {peer: region for region, part in enumerate(parts) for peer in part}


def assign_places(division: Division) -> tuple[PeerId, ...]:
    """Return the reducer of each place. Somebody has to be able to reduce."""
    choice, load = _Choice(division), Counter[PeerId]()
    result: list[PeerId] = []
    for group in range(division.tree.num_groups):
        chosen = choice.candidates(group, load)
        shares = choice.shares(group, chosen)
        assigned = plan.assign_by_shares(division.tree.num_slices, shares)
        load.update(assigned)
        result += assigned
    return tuple(result)


def reassign_places(
    division: Division, assignment: Sequence[PeerId], *, lost: frozenset[PeerId]
) -> tuple[PeerId, ...]:
    """Return the assignment with the places of lost reducers dealt out, the others as they are."""
    choice, load = _Choice(division), Counter(assignment)
    result = list(assignment)
    for group in range(division.tree.num_groups):
        places = division.tree.places(group)
        before = assignment[places.start : places.stop]
        if not lost.isdisjoint(before):
            able = choice.candidates(group, load)
            # Not who has something to do in another group, if there are others: it has its dozens.
            chosen = [peer for peer in able if peer in before or not load[peer]] or able
            shares = choice.shares(group, chosen)
            after = plan.reassign(before, lost=lost, reducers=chosen, shares=shares)
            load.update(after)
            result[places.start : places.stop] = after
    return tuple(result)


class _Choice:
    """Who can reduce for a group, and how much of it each should."""

    def __init__(self, division: Division) -> None:
        self._division = division
        num_regions, reducers = division.tree.num_regions, division.reducers
        self._members: list[list[PeerId]] = [[] for _ in range(num_regions)]
        for peer, region in division.regions.items():
            self._members[region].append(peer)
        own: list[list[PeerId]] = [[] for _ in range(num_regions)]
        for peer in reducers:
            if (its_region := division.regions.get(peer)) is not None:
                own[its_region].append(peer)
        spare = divided(reducers, num_regions)
        self._reducers = [own[region] or spare[region] or reducers for region in range(num_regions)]

    def candidates(self, group: int, load: Counter[PeerId]) -> Sequence[PeerId]:
        """Return who can reduce for the group; `load` is how much each has to do already."""
        tree = self._division.tree
        if group < tree.num_regions:
            return self._reducers[group]
        regions: list[int] = [group]
        while regions[0] >= tree.num_regions:
            regions = [child for one in regions for child in tree.children(one)]
        heads = (min(self._reducers[r], key=lambda peer: (load[peer], peer)) for r in regions)
        return sorted(set(heads))

    def shares(self, group: int, chosen: Sequence[PeerId]) -> dict[PeerId, float]:
        """Return how much of the group's work each of the chosen should do, by their lines.

        To those above the regions each head brings partial sums, as contributors bring slices.
        """
        tree, links, volumes = self._division.tree, self._division.links, self._division.volumes
        is_region = group < tree.num_regions
        peers: Iterable[PeerId] = chosen
        if is_region:
            peers = {*self._members[group], *chosen} if tree.num_regions > 1 else links
        members = [
            replace(
                links[peer],
                reduces=peer in chosen,
                contributes=links[peer].contributes or not is_region,
            )
            for peer in peers
            if peer in links
        ]
        return plan.shares_of_work(
            members,
            contribution_bytes=volumes.contribution if is_region else volumes.partial,
            update_bytes=volumes.update,
        )
