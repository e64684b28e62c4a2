"""Who is in which region, and who reduces which place of the tree. Pure.

    members --by_distance--> regions --assign_places--> the reducer of each place
                                      reassign_places

Each member has a way: the cell of the world that it is in, halved again and again, axis by axis,
and then its id, bit by bit. Whoever has no position is in a world of its own. Members that have the
beginning of their way in common are a region if they are no more than fit into one; else they are
two parts, by the first bit that leaves somebody in both who can reduce, and so on. So regions are
near each other inside, follow from who is where and from nothing else, and whoever comes or goes
changes its own region, and now and then the one beside it.

A region is reduced by those of its own members who can, but for some; where there are none,
by those who have nothing to do in the next region. A level above, a group's reducers are the heads
of the regions below it: of each region the one with the least to reduce, which is nothing as a
rule. What each of them takes on follows from the lines (plan.py), as far as nobody has more than
some dozens to talk to then (dials.py).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from atoll.exchange import plan
from atoll.exchange.dials import BUNDLES, WIDEST, fan_in
from atoll.exchange.plan import Link
from atoll.exchange.positions import Position
from atoll.exchange.tree import Tree, divided, is_divided
from atoll.ids import PeerId

CELL_S: Final = 0.032  # members of one cell are near each other
CELL_BITS: Final = 6  # 64 cells on each axis; the outermost reach to the end of the world
ID_BITS: Final = 128
WAY_BITS: Final = 1 + 3 * CELL_BITS + ID_BITS
SPARES: Final = 4, 8  # with so many who can reduce a region spares one for groups above, and two
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


def divide(
    members: Iterable[PeerId],
    reducers: Collection[PeerId],
    *,
    positions: Mapping[PeerId, Position],
    size: int,
    num_slices: int,
) -> tuple[Tree, dict[PeerId, int]]:
    """Return the tree for these members, and the region of each; with one region, of nobody."""
    most_able = BUNDLES + len(SPARES) if num_slices > BUNDLES else None
    parts = by_distance(members, reducers, positions=positions, size=size, most_able=most_able)
    tree = Tree.over(num_slices, num_regions=len(parts), fan_in=fan_in(size, num_slices))
    return tree, numbered(parts)


def count_regions(num_members: int, num_reducers: int, *, size: int) -> int:
    """Return into how many regions these are divided, of at most `size`; 0: all are in one.

    There are no more than have somebody to reduce them.
    """
    if not is_divided(num_members, size):
        return 1
    return max(1, min(-(-num_members // size), num_reducers))


def by_distance(
    members: Iterable[PeerId],
    reducers: Collection[PeerId],
    *,
    positions: Mapping[PeerId, Position],
    size: int,
    most_able: int | None = None,
) -> list[list[PeerId]]:
    """Return the members of each region, at most `size` in one; 0: all are in one.

    Where there are several, no more than `most_able` of one can reduce: more could not all do so.
    There are no more regions than have somebody to reduce them: with few of these they are larger.
    """
    way = {peer: _way(peer, positions.get(peer)) for peer in members}
    in_order = sorted(way, key=lambda peer: (way[peer], peer))
    if not is_divided(len(in_order), size):
        return [in_order]
    among = frozenset(reducers)

    def fits(some: list[PeerId]) -> bool:
        able = 0 if most_able is None else len(among.intersection(some))
        return len(some) <= size and able <= (most_able or 0)

    def parts_of(some: list[PeerId], bit: int) -> list[list[PeerId]]:
        if fits(some):
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
        if not is_small or not fits(one + other):
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


def assign_places(division: Division) -> tuple[PeerId, ...]:
    """Return the reducer of each place. Somebody has to be able to reduce."""
    choice, load = _Choice(division), Counter[PeerId]()
    reducers: dict[int, list[PeerId]] = {}
    for group in choice.in_order():
        candidates = choice.candidates(group, load)
        shares = choice.shares(group, candidates)
        most = choice.most_reducers(group, len(candidates), load)
        if len(shares) > most:
            chosen = sorted(shares, key=lambda peer: (-shares[peer], peer))[:most]
            shares = {peer: share for peer, share in shares.items() if peer in chosen}
        assigned = plan.assign_by_shares(
            len(choice.bundles), shares, at_most=choice.most_bundles(group)
        )
        load.update(assigned)
        reducers[group] = choice.of_slices(assigned)
    return tuple(peer for group in sorted(reducers) for peer in reducers[group])


def reassign_places(
    division: Division, assignment: Sequence[PeerId], *, lost: frozenset[PeerId]
) -> tuple[PeerId, ...]:
    """Return the assignment with the places of lost reducers dealt out, the others as they are."""
    choice, load = _Choice(division), Counter(assignment)
    result = list(assignment)
    for group in range(division.tree.num_groups):
        places = division.tree.places(group)
        before = [assignment[places.start + bundle[0]] for bundle in choice.bundles]
        if not lost.isdisjoint(before):
            chosen = choice.substitutes(group, load, beside=frozenset(before) - lost)
            shares = choice.shares(group, chosen)
            most = choice.most_bundles(group)
            after = plan.reassign(before, lost=lost, reducers=chosen, shares=shares, at_most=most)
            load.update(after)
            result[places.start : places.stop] = choice.of_slices(after)
    return tuple(result)


class _Choice:
    """Who can reduce for a group, and how much of it each should.

    `load` is how much each has to do already.
    """

    def __init__(self, division: Division) -> None:
        self._division = division
        self.bundles = division.tree.bundles(BUNDLES)
        num_regions, reducers = division.tree.num_regions, division.reducers
        self._members: list[list[PeerId]] = [[] for _ in range(num_regions)]
        for peer, region in division.regions.items():
            self._members[region].append(peer)
        self._own: list[list[PeerId]] = [[] for _ in range(num_regions)]
        for peer in reducers:
            if (its_region := division.regions.get(peer)) is not None:
                self._own[its_region].append(peer)

    def in_order(self) -> list[int]:
        """Return the groups in the order in which they choose: who has nobody of its own, later."""
        tree = self._division.tree
        regions = sorted(range(tree.num_regions), key=lambda region: not self._own[region])
        return [*regions, *range(tree.num_regions, tree.num_groups)]

    def of_slices(self, of_bundles: Sequence[PeerId]) -> list[PeerId]:
        """Return the reducer of each slice."""
        return [
            peer
            for peer, run in zip(of_bundles, self.bundles, strict=True)
            for _ in range(len(run))
        ]

    def candidates(self, group: int, load: Counter[PeerId]) -> Sequence[PeerId]:
        """Return who can reduce for the group: of a region, or the heads of those below it.

        Who has nothing to do so far, if these are enough.
        """
        reducers = self._division.reducers
        if group < self._division.tree.num_regions:
            return self._own[group] or self._idle_beside(group, load) or reducers
        heads = {
            min(self._own[region] or reducers, key=lambda peer: (load[peer], peer))
            for region in self._regions_below(group)
        }
        free = sorted(peer for peer in heads if not load[peer])
        if len(free) < self._enough(group):
            free = self._idle(self._regions_below(group), load)
        return free if len(free) >= self._enough(group) else sorted(heads)

    def _idle(self, regions: Iterable[int], load: Counter[PeerId]) -> list[PeerId]:
        """Return who can reduce in these regions, and has nothing to do."""
        return sorted(peer for one in regions for peer in self._own[one] if not load[peer])

    def _idle_beside(self, region: int, load: Counter[PeerId]) -> Sequence[PeerId]:
        """Return who has nothing to do in the next region where there is somebody."""
        num_regions = self._division.tree.num_regions
        for other in sorted(range(num_regions), key=lambda one: abs(one - region)):
            if idle := self._idle([other], load):
                return idle
        return ()

    def substitutes(
        self, group: int, load: Counter[PeerId], *, beside: frozenset[PeerId]
    ) -> Sequence[PeerId]:
        """Return who can take over from others `beside` these, the reducers of the group now.

        Not who has something to do in another group, if there are others: it has its dozens. So
        somebody of the next region is better than the head of this one.
        """
        able = self.candidates(group, load)
        if chosen := [peer for peer in able if peer in beside or not load[peer]]:
            return chosen
        is_region = group < self._division.tree.num_regions
        return (self._idle_beside(group, load) if is_region else ()) or able

    def most_reducers(self, group: int, num_able: int, load: Counter[PeerId]) -> int:
        """Return how many reducers the group has at most, of so many that can.

        Each region spares a member or two, to be heads, and a group above spares some of these for
        each level above it. With one region all reduce: there are no others to talk to.
        """
        tree = self._division.tree
        if tree.num_groups == 1:
            return num_able
        if group < tree.num_regions:
            num_heads = sum(num_able >= able for able in SPARES)
            return min(len(self.bundles), num_able - num_heads)
        below = self._regions_below(group)
        num_free = len(self._idle(below, load))
        if num_free < self._enough(group):
            return len(self.bundles)
        num_above = sum(group < level.start for level in tree.levels)
        return min(len(self.bundles), max(self._enough(group), num_free - num_above))

    def _enough(self, group: int) -> int:
        """Return how many reducers have no more bundles each than they should."""
        return -(-len(self.bundles) // self.most_bundles(group))

    def most_bundles(self, group: int) -> int:
        """Return how many bundles one reducer of the group has at most, if there are others."""
        if group < self._division.tree.num_regions:
            return len(self.bundles)
        return max(1, WIDEST // (len(self._division.tree.children(group)) + 1))

    def _regions_below(self, group: int) -> list[int]:
        tree = self._division.tree
        regions: list[int] = [group]
        while regions[0] >= tree.num_regions:
            regions = [child for one in regions for child in tree.children(one)]
        return regions

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
