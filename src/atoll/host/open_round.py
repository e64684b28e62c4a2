"""An open round as the host knows it, and what can be read off it. A value: no clock, no decision.

Only `rounds.py` changes it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import ceil

from atoll.config import SyncConfig
from atoll.exchange.tree import Tree
from atoll.host.decision import Present, Share
from atoll.ids import Digest, PeerId, RoundId
from atoll.net import wire

Phase = Enum("Phase", "COLLECT REDUCE")
MIN_HOLDERS = 2  # on whose disks the updates are before the commit: one may die at any moment
NOBODY = PeerId("")  # reduces what no member can for now


@dataclass(slots=True, kw_only=True)
class Round:
    """An open round: it waits for the contributors `waited`; all `invited` may come."""

    id: RoundId
    opened_at: float
    waited: set[PeerId]
    assignment: tuple[PeerId, ...]  # the reducer of each place (exchange/tree.py)
    version: int  # of the plan; counts up
    roster_version: int
    phase: Phase = Phase.COLLECT
    widths: tuple[int, ...] = (1,)  # of the tree
    tree: Tree = field(init=False)
    _region_sizes: list[int] = field(init=False)
    num_able: int = 0  # who could reduce when it was divided
    regions: dict[PeerId, int] = field(default_factory=dict)  # of members; not in it: the root's
    invited: set[PeerId] = field(default_factory=set)
    work: dict[PeerId, int] = field(default_factory=dict)  # samples that each is to contribute
    # What each peer says that it brings, on the connection that it has now. Of these, `claims` are
    # what a roster can be made of; whoever is in the roster stays with what it claimed before.
    said: dict[PeerId, wire.Contribution] = field(default_factory=dict)
    claims: dict[PeerId, wire.Contribution] = field(default_factory=dict)
    # By contributor, slice and digest, the squared norm of what is at the reducer of that slice.
    delivered: dict[PeerId, dict[tuple[int, Digest], float]] = field(default_factory=dict)
    completed_at: dict[PeerId, float] = field(default_factory=dict)
    norms: dict[PeerId, float] = field(default_factory=dict)  # of contributions that were whole
    roster: tuple[Share, ...] = ()  # in REDUCE: it is fixed
    in_roster: Mapping[PeerId, Share] = field(default_factory=dict)  # the same, by peer
    announced: tuple[Share, ...] = ()  # to the members: the roster, or the expected one
    announced_at: float = 0.0
    populated: frozenset[int] = frozenset()  # groups that have somebody of it below them
    reduced: dict[int, wire.Reduced] = field(default_factory=dict)  # by place
    reduced_at: dict[int, float] = field(default_factory=dict)
    parts: dict[int, tuple[Digest, ...]] = field(default_factory=dict)  # what these are made of
    held: dict[PeerId, tuple[Digest, ...]] = field(default_factory=dict)
    complaints: dict[PeerId, set[PeerId]] = field(default_factory=dict)
    excluded: set[PeerId] = field(default_factory=set)  # reducers that were no good in this round
    closed_at: float = 0.0
    progress_at: float = 0.0  # when something new last arrived, in REDUCE
    usual_s: float | None = None  # from the claims to the commit, in earlier rounds
    usual_wait_s: float = 0.0  # for the middle contributor, in earlier rounds
    middle_speed: float | None = None  # of the median peer, in samples per second
    claimed_at: dict[PeerId, float] = field(default_factory=dict)
    began_at: dict[PeerId, float] = field(default_factory=dict)  # when its first slice arrived
    moved_at: dict[int, float] = field(default_factory=dict)  # places, to their present reducers
    # When whose slices came to a place, and when members had the update of a slice.
    collected_at: dict[int, dict[PeerId, float]] = field(default_factory=dict)
    fetched_at: dict[int, dict[PeerId, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tree = Tree(len(self.assignment) // sum(self.widths), self.widths)
        self.divide(tree, self.regions, self.assignment)

    def divide(
        self, tree: Tree, regions: dict[PeerId, int], assignment: tuple[PeerId, ...]
    ) -> None:
        """Let the members be in these regions, and these reduce the places of this tree."""
        self.tree, self.widths = tree, tree.widths
        self.assignment = assignment
        self.regions = regions
        self._region_sizes = [0] * tree.num_regions
        for region in regions.values():
            self._region_sizes[region] += 1

    @property
    def largest_region(self) -> int:
        """How many members the largest region has; 0: there is one, and all are in it."""
        return max(self._region_sizes)

    @property
    def num_slices(self) -> int:
        return self.tree.num_slices

    def group_of(self, peer: PeerId) -> int:
        """Return the group to whose reducers the member turns: its region, if it is in one."""
        return self.regions.get(peer, self.tree.root)

    def join_region(self, peer: PeerId) -> None:
        """Put somebody into the smallest region, the first of these, if it is in none."""
        if self.tree.num_regions > 1 and peer not in self.regions:
            region = self._region_sizes.index(min(self._region_sizes))
            self.regions[peer] = region
            self._region_sizes[region] += 1

    def below(self, group: int) -> list[int]:
        """Return the groups whose partial sums this one adds up, for the announced roster."""
        return [child for child in self.tree.children(group) if child in self.populated]

    def groups_with(self, roster: Iterable[Share]) -> frozenset[int]:
        """Return the groups that have somebody of a roster below them."""
        return frozenset(self.tree.with_parents(self.group_of(share.peer) for share in roster))


def is_complete(rnd: Round, peer: PeerId) -> bool:
    """Return whether every slice that the peer claims is at its reducer."""
    contribution = rnd.claims.get(peer)
    arrived = rnd.delivered.get(peer, {})
    if contribution is None or len(arrived) < len(contribution.digests):
        return False
    return all(slice_ in arrived for slice_ in enumerate(contribution.digests))


def is_under_way(rnd: Round, peer: PeerId) -> bool:
    """Return whether what the peer claims is at the reducers, or the peer still says it brings it.

    Whoever was killed has brought some of it, at the best, and has it no more.
    """
    return peer in rnd.completed_at or (peer in rnd.claims and peer in rnd.said)


def num_arrived(rnd: Round, peer: PeerId) -> int:
    """Return how many slices of the peer are at their reducers, of whichever contribution."""
    return len({k for k, _ in rnd.delivered.get(peer, ())})


def is_lost(rnd: Round, peer: PeerId) -> bool:
    """Return whether a slice of its claim is at no reducer, and nobody can bring it there any more.

    That is, the peer itself brings another one by now: it trained again.
    """
    arrived, said = rnd.delivered.get(peer, {}), rnd.said.get(peer)
    return said is not None and any(
        said.digests[k] != digest and (k, digest) not in arrived
        for k, digest in enumerate(rnd.claims[peer].digests)
    )


def waited_for(rnd: Round, present: Present) -> set[PeerId]:
    """Return whose contributions the round is there for."""
    idle = {peer for peer in present.resting if not is_under_way(rnd, peer)}
    here = present.connected - idle
    return rnd.waited & (here | present.away) or rnd.invited & here


def quorum_in(rnd: Round, waited: set[PeerId], *, present: Present, policy: SyncConfig) -> int:
    """Return how many of those that the round waits for have to deliver, as `quorum_of` says."""
    # Whoever has lost its connection has to train anew, or is only just back: not of the quorum.
    num_away = len(waited - present.connected - rnd.completed_at.keys())
    return quorum_of(len(waited) - num_away, policy)


def quorum_of(num_peers: int, policy: SyncConfig) -> int:
    """Return how many of these have to deliver before the others have only the grace time left."""
    return max(1, ceil(policy.quorum * num_peers))


def short_of_slices(rnd: Round) -> set[PeerId]:
    """Return the contributors of the roster with a slice missing at its reducer."""
    return set(rnd.in_roster) - set(rnd.completed_at)


def are_enough(holders: set[PeerId], present: Present) -> bool:
    """Return whether one of the holders may die, and one of them is honest, if most members are.

    Whoever says that it holds an update has decoded it. The keeper, the host's own, is believed;
    without it more than half of the members are: so no reducer and its friends can have bytes
    committed from which nobody else can go on.
    """
    is_safe = len(holders) >= max(1, min(MIN_HOLDERS, len(present.able)))
    is_majority = 2 * len(holders & present.able) > len(present.able)
    return is_safe and (present.keeper in holders or is_majority)


def num_enough(present: Present) -> int:
    """Return how many holders are enough, the keeper among them if it is able."""
    num_able = len(present.able)
    believed = MIN_HOLDERS if present.keeper in present.able else num_able // 2 + 1
    return max(1, min(num_able, max(MIN_HOLDERS, believed)))


def holders_of(rnd: Round) -> set[PeerId]:
    """Return who has all the updates on disk that the reducers reported, and has decoded them."""
    updates = [rnd.reduced.get(place) for place in rnd.tree.places(rnd.tree.root)]
    digests = tuple(update.digest for update in updates if update is not None)
    if len(digests) < rnd.num_slices:
        return set()
    return {peer for peer, held in rnd.held.items() if held == digests}
