"""The run as the host knows it, and what can be read off it. Pure: no I/O, no clock.

`Run` is a function of the journal and of who is connected. Only `run.py` and `due.py` change it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from atoll.config import RunConfig
from atoll.data.leases import LeaseBook
from atoll.exchange.positions import Position
from atoll.exchange.tree import is_divided
from atoll.host import pace
from atoll.host.decision import Present
from atoll.host.membership import Member, Membership
from atoll.host.open_round import Round
from atoll.ids import INITIAL, Digest, Lease, LeaseId, PeerId, RoundId
from atoll.net import records, wire
from atoll.traffic import Traffic

REPLAY_ROUNDS = 8  # state / int8 update = 8 bytes / 1: beyond, fetching the state is cheaper
USUAL_OF = 5  # rounds: one that went wrong does not count
MEASURED = 12  # round trips of a member: each may be off, and nobody is dialled by many
MAX_SOURCES = 16  # of blobs that a member is told of: a message is no longer in a larger run


@dataclass(frozen=True, slots=True)
class Settled:
    """What a commit has of a peer."""

    leases: tuple[Lease, ...]
    contribution: Digest
    num_tokens: int
    round_tokens: int  # of all contributors
    total_tokens: int  # of the peer, up to this commit


@dataclass(slots=True)
class Asking:
    """The state that somebody is asked to evaluate, and who has been asked."""

    round: RoundId
    peer: PeerId | None = None  # who is to say it now
    until: float = 0.0
    asked: set[PeerId] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class SitsOut:
    """How long a member that had to be relieved as a reducer is spared that work."""

    until: RoundId
    num_rounds: int


@dataclass(slots=True, kw_only=True)
class Run:
    config: RunConfig
    dataset: Digest
    built_in: PeerId
    slice_bytes: tuple[tuple[int, ...], ...]  # of each fragment: how long its encoded updates are
    contribution_bytes: tuple[int, ...]  # of each fragment: how long a contribution is
    partial_bytes: tuple[int, ...]  # of each fragment: how long its partial sums are
    membership: Membership = field(default_factory=Membership)
    book: LeaseBook = field(default_factory=LeaseBook)
    committed: RoundId = INITIAL
    agreed: dict[RoundId, Digest] = field(default_factory=dict)
    open_rounds: dict[RoundId, Round] = field(default_factory=dict)  # in their order
    ready_at: float | None = None  # since when enough peers are ready for the next round
    # Of each peer and fragment: tokens that were committed, but with other fragments only so far.
    fresh: dict[PeerId, tuple[int, ...]] = field(default_factory=dict)
    # What the last rounds committed of whom. Whoever has not heard of that holds the leases.
    settled: dict[RoundId, dict[PeerId, Settled]] = field(default_factory=dict)
    tokens: dict[PeerId, int] = field(default_factory=dict)  # committed, of each peer
    evaluated: RoundId = INITIAL  # the newest state of which somebody has said how good it is
    asking: Asking | None = None  # who is to say it of a newer one
    departed: set[PeerId] = field(default_factory=set)  # gone, with leases that are not free yet
    traffic: dict[PeerId, Traffic] = field(default_factory=dict)  # that no record tells of yet
    # What members have told of how far away others are, and where that puts them.
    round_trips: dict[PeerId, dict[PeerId, float]] = field(default_factory=dict)
    positions: dict[PeerId, Position] = field(default_factory=dict)
    num_planned: int = 0
    is_paused: bool = False  # by the operator
    chosen_reducers: frozenset[PeerId] = frozenset()  # by the operator; empty: all that can
    sitting_out: dict[PeerId, SitsOut] = field(default_factory=dict)  # reducers that were relieved
    waits_s: tuple[float, ...] = ()  # for the middle contributor of each of the last rounds
    exchanges_s: tuple[float, ...] = ()  # how long those of the last rounds took
    started_at: float = 0.0
    # Members that the journal names, and that have not come since it was read.
    unseen: set[PeerId] = field(default_factory=set)
    # What `present` found last, and what that was a function of.
    found: tuple[tuple[RoundId, int, int], Present] | None = field(default=None, compare=False)

    @property
    def is_complete(self) -> bool:
        return self.committed >= self.config.sync.rounds and self.committed in self.agreed

    @property
    def has_regions(self) -> bool:
        """Whether so many members are connected that rounds are divided into regions."""
        return is_divided(self.membership.num_connected, self.config.sync.region_size)

    @property
    def is_asking(self) -> bool:
        """Whether a peer is to say how good a state is."""
        return self.asking is not None and self.asking.peer is not None

    @property
    def round(self) -> Round | None:
        """The oldest open round, which is the next to be committed."""
        return next(iter(self.open_rounds.values()), None)

    @property
    def usual_exchange_s(self) -> float | None:
        """How long an exchange takes, from the claims to the commit; None: nobody knows yet."""
        return median(self.exchanges_s) if self.exchanges_s else None

    @property
    def usual_wait_s(self) -> float:
        """How long a round waits for its middle contributor; 0: nobody knows yet."""
        return median(self.waits_s) if self.waits_s else 0.0

    def may_be_found_again(self, *, now: float) -> bool:
        """Return whether members of the host's earlier lives may still come back to this one.

        The built-in member is always one of them: it comes with the host.
        """
        return bool(self.unseen) and now < self.started_at + self.config.sync.reconnect_s

    def note_wait(self, seconds: float) -> None:
        self.waits_s = (*self.waits_s, seconds)[-USUAL_OF:]

    def note_exchange(self, seconds: float) -> None:
        self.exchanges_s = (*self.exchanges_s, seconds)[-USUAL_OF:]

    @property
    def next_round(self) -> RoundId:
        """The round that is committed next."""
        return RoundId(self.committed + 1)

    @property
    def next_to_open(self) -> RoundId:
        return RoundId(max(self.open_rounds, default=self.committed) + 1)

    def fragment_of(self, round_id: RoundId) -> int:
        """Return which fragment the round synchronises: one after the other, over and over."""
        return (round_id - 1) % len(self.slice_bytes)

    def fresh_tokens(self, peer: PeerId, round_id: RoundId) -> int:
        """Return what the peer trained on since its contribution to this fragment before this one.

        Not counting the leases that it names now. Those that it named for open rounds before this
        one are in no commit yet, but in its local weights.
        """
        committed = self.fresh.get(peer, (0,) * len(self.slice_bytes))
        under_way = sum(
            rnd.in_roster[peer].num_tokens
            for rnd in self.open_rounds.values()
            if rnd.id < round_id and peer in rnd.in_roster
        )
        return committed[self.fragment_of(round_id)] + under_way

    def note_committed(self, record: records.Committed) -> None:
        """Make the leases of a round's roster committed.

        Note which work the fragment of the round now contains, and which others still lack.
        """
        round_tokens = sum(entry.num_tokens for entry in record.roster)
        for entry in record.roster:
            self.tokens[entry.peer] = self.tokens.get(entry.peer, 0) + entry.num_tokens
        self.settled[record.round] = {
            entry.peer: Settled(
                tuple(lease for lease in self.book.held_by(entry.peer) if lease.id in entry.leases),
                entry.contribution,
                num_tokens=entry.num_tokens,
                round_tokens=round_tokens,
                total_tokens=self.tokens[entry.peer],
            )
            for entry in record.roster
        }
        self.settled.pop(RoundId(record.round - REPLAY_ROUNDS * len(self.slice_bytes)), None)
        self.book.commit({entry.peer: entry.leases for entry in record.roster})
        for entry in record.roster:
            before = self.fresh.get(entry.peer, (0,) * len(self.slice_bytes))
            self.fresh[entry.peer] = tuple(
                0 if index == record.fragment else tokens + entry.num_tokens
                for index, tokens in enumerate(before)
            )

    def held_at(self, peer: PeerId, round_id: RoundId) -> tuple[Lease, ...]:
        """Return the leases that the peer holds as far as it knows after the commit of a round."""
        unheard = [
            lease
            for later, of_peers in self.settled.items()
            if later > round_id and peer in of_peers
            for lease in of_peers[peer].leases
        ]
        return (*unheard, *self.book.held_by(peer))

    def counted(self, peer: PeerId, round_id: RoundId) -> wire.Counted | None:
        """Return what one of the last commits has of the peer; None: nothing."""
        settled = self.settled[round_id].get(peer)
        if settled is None:
            return None
        ids = tuple(lease.id for lease in settled.leases)
        return wire.Counted(
            leases=ids,
            contribution=settled.contribution,
            num_tokens=settled.num_tokens,
            round_tokens=settled.round_tokens,
            total_tokens=settled.total_tokens,
        )

    @property
    def newest_base(self) -> RoundId:
        """The newest agreed state that members keep: one for each turn of all fragments."""
        every = len(self.slice_bytes)
        return max(r for r in self.agreed if r % every == 0 or r == self.config.sync.rounds)


def is_ready(run: Run, peer: PeerId, round_id: RoundId) -> bool:
    """Return whether the peer can train on the round now."""
    member = run.membership.get(peer)
    return member is not None and member.trains and is_able(run, peer, round_id)


def is_able(run: Run, peer: PeerId, round_id: RoundId) -> bool:
    """Return whether the member holds a state that the round can start from.

    That is an agreed one, which has all but the rounds that may be open before this one: with one
    round in flight, the newest. And the host knows who can reach the member. A state that is newer
    than it must be need not be agreed on yet. Who rests is able to nothing.
    """
    member = run.membership.get(peer)
    return member is not None and _can_start(run, member, round_id)


def _can_start(run: Run, m: Member, round_id: RoundId) -> bool:
    if not (m.connected and m.probed) or m.rests or m.state is None:
        return False
    oldest = round_id - run.config.sync.in_flight
    if m.round not in run.agreed:
        return m.round > oldest
    return m.round >= oldest and m.state == run.agreed[m.round]


def present(run: Run, round_id: RoundId) -> Present:
    """Return who could do what for the round, now."""
    key = round_id, run.membership.version, len(run.agreed)
    if run.found is None or run.found[0] != key:
        run.found = key, _present(run, round_id)
    return run.found[1]


def _present(run: Run, round_id: RoundId) -> Present:
    members = run.membership.connected()
    connected = frozenset([m.peer for m in members])
    able = frozenset([m.peer for m in members if _can_start(run, m, round_id)])
    return Present(
        connected=connected,
        away=frozenset(run.membership.members) - connected,
        able=able,
        can_reduce=able.intersection(run.membership.reachable()),
        keeper=run.built_in,
        resting=frozenset([m.peer for m in members if m.rests]),
    )


def base_for(run: Run, hello: wire.Hello) -> tuple[RoundId, Digest]:
    """Return the state that the peer starts to catch up from: its own if that is any good.

    Else one of which it has a part already, if that saves more than it costs; else the newest.
    """
    agreed = run.agreed.get(hello.round)
    if not run.agreed or (_is_near(run, hello.round) and agreed in (None, hello.state)):
        return hello.round, hello.state
    newest, arriving = run.newest_base, hello.arriving
    if (
        arriving is not None
        and run.agreed.get(arriving.round) == arriving.state
        and _is_near(run, arriving.round)
        and _update_bytes(run, since=arriving.round, upto=newest) < arriving.num_bytes
    ):
        return arriving.round, arriving.state
    return newest, run.agreed[newest]


def _is_near(run: Run, round_id: RoundId) -> bool:
    """Return whether members keep the updates of all rounds since this one."""
    return run.committed - round_id <= REPLAY_ROUNDS * len(run.slice_bytes)


def _update_bytes(run: Run, *, since: RoundId, upto: RoundId) -> int:
    """Return the bytes of the updates from one state to another."""
    rounds = range(since + 1, upto + 1)
    return sum(sum(run.slice_bytes[run.fragment_of(RoundId(r))]) for r in rounds)


def sources(run: Run, peer: PeerId) -> tuple[wire.Address, ...]:
    """Return whom the peer can ask for blobs, the host's built-in member last."""
    names = run.membership.around(peer, MAX_SOURCES)
    others = [name for name in names if name not in (peer, run.built_in)]
    return tuple(addresses(run, [*others, run.built_in]))


def unmeasured(run: Run, peer: PeerId) -> tuple[wire.Address, ...]:
    """Return to whom the peer is to measure its round trip; nobody, if there are no regions.

    Nor if it is known where the peer is.
    """
    if not run.has_regions or peer in run.positions:
        return ()
    known = run.round_trips.get(peer, {})
    others = [one for one in run.membership.scattered(peer, MEASURED) if one not in known]
    return tuple(addresses(run, others))


def addresses(run: Run, peers: Iterable[PeerId]) -> Iterator[wire.Address]:
    """Yield the addresses of those of these that can be reached."""
    for peer in peers:
        member = run.membership.get(peer)
        if member is not None and member.address is not None:
            yield member.address


def middle_speed(run: Run) -> float | None:
    """Return how many samples per second the median peer trains on; None: no speed is known."""
    speeds = [
        m.samples_per_s
        for m in run.membership.connected()
        if m.trains and m.samples_per_s is not None
    ]
    return median(speeds) if speeds else None


def samples_of_round(run: Run, rnd: Round, peer: PeerId) -> int:
    """Return how many samples the peer is to contribute to the round."""
    config, member = run.config, run.membership.get(peer)
    if config.sync.pace == "steps":
        return config.samples_per_round
    speed = None if member is None else member.samples_per_s
    num_steps = pace.inner_steps(speed, rnd.middle_speed, num_steps=config.steps_per_round)
    return num_steps * config.inner.batch_sequences


def num_unclaimed(run: Run, peer: PeerId) -> int:
    """Return how many samples the peer leases that it has not offered to an open round."""
    claims = [rnd.said[peer] for rnd in run.open_rounds.values() if peer in rnd.said]
    claimed = {lease_id for claim in claims for lease_id in claim.leases}
    held = run.book.held_by(peer)
    return sum(lease.num_samples for lease in held if lease.id not in claimed)


def leases_of(
    run: Run, round_id: RoundId, peer: PeerId, claim: wire.Contribution
) -> tuple[LeaseId, ...]:
    """Return which of the leases that a contribution has in it the round would commit.

    Those that the peer holds, but for what the rosters of open rounds before this one have of it.
    """
    taken = {
        lease_id
        for rnd in run.open_rounds.values()
        if rnd.id < round_id and peer in rnd.in_roster
        for lease_id in rnd.claims[peer].leases
    }
    free = {lease.id for lease in run.book.held_by(peer)} - taken
    return tuple(lease_id for lease_id in claim.leases if lease_id in free)


def num_tokens(run: Run, rnd: Round, peer: PeerId) -> int:
    """Return how many tokens the leases have that the round would commit of the peer."""
    sizes = {lease.id: lease.num_samples for lease in run.book.held_by(peer)}
    named = leases_of(run, rnd.id, peer, rnd.claims[peer])
    return sum(sizes[lease_id] for lease_id in named) * run.config.data.sequence_length
