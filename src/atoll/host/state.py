"""The run as the host knows it, and what can be read off it. Pure: no I/O, no clock.

`Run` is a function of the journal and of who is connected. Only `run.py` and `due.py` change it.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from atoll import events
from atoll.config import RunConfig
from atoll.data import leases
from atoll.data.leases import LeaseBook
from atoll.exchange import plan
from atoll.host.effects import Effect, Report, Send
from atoll.host.membership import Membership
from atoll.host.rounds import NOBODY, Present, Round
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.net import wire

REPLAY_ROUNDS = 8  # state / int8 update = 8 bytes / 1: beyond, fetching the state is cheaper


@dataclass(slots=True, kw_only=True)
class Run:
    config: RunConfig
    dataset: Digest
    built_in: PeerId
    slice_bytes: tuple[int, ...]  # how long the update of each slice is, encoded
    membership: Membership = field(default_factory=Membership)
    book: LeaseBook = field(default_factory=LeaseBook)
    committed: RoundId = INITIAL
    agreed: dict[RoundId, Digest] = field(default_factory=dict)
    round: Round | None = None
    ready_at: float | None = None  # since when enough peers are ready for the next round
    departed: set[PeerId] = field(default_factory=set)  # gone, with leases that are not free yet
    num_planned: int = 0
    started_at: float = 0.0

    @property
    def num_slices(self) -> int:
        return len(self.slice_bytes)

    @property
    def is_complete(self) -> bool:
        return self.committed >= self.config.sync.rounds and self.committed in self.agreed

    @property
    def next_round(self) -> RoundId:
        return RoundId(self.committed + 1)


def is_ready(run: Run, peer: PeerId) -> bool:
    """Return whether the peer can train on the next round now."""
    member = run.membership.get(peer)
    return member is not None and member.trains and has_newest(run, peer)


def has_newest(run: Run, peer: PeerId) -> bool:
    """Return whether the member holds the agreed state, and the host knows who can reach it."""
    m = run.membership.get(peer)
    if m is None or not (m.connected and m.probed):
        return False
    return m.round == run.committed and m.state == run.agreed.get(run.committed, "")


def present(run: Run) -> Present:
    """Return who could do what for a round, now."""
    members = run.membership.members
    connected = frozenset(m.peer for m in run.membership.connected())
    able = frozenset(peer for peer in connected if has_newest(run, peer))
    return Present(
        connected=connected,
        away=frozenset(members) - connected,
        able=able,
        can_reduce=frozenset(p for p in able if members[p].address is not None),
        keeper=run.built_in,
    )


def base_for(run: Run, hello: wire.Hello) -> tuple[RoundId, Digest]:
    """Return the state that the peer starts to catch up from: its own if that is any good."""
    agreed = run.agreed.get(hello.round)
    near = run.committed - hello.round <= REPLAY_ROUNDS
    if not run.agreed or (near and agreed in (None, hello.state)):
        return hello.round, hello.state
    newest = max(run.agreed)
    return newest, run.agreed[newest]


def sources(run: Run) -> tuple[wire.Address, ...]:
    """Return who can be asked for blobs, the host's built-in member last."""
    members = sorted(run.membership.connected(), key=lambda m: m.peer == run.built_in)
    return tuple(m.address for m in members if m.address is not None)


def reducers(run: Run, *, without: Collection[PeerId] = ()) -> list[PeerId]:
    """Return who reduces: the peers that others can reach; with none, the built-in member."""
    can_reduce = present(run).can_reduce - frozenset(without)
    return sorted(can_reduce - {run.built_in}) or sorted(can_reduce)


def plan_for(run: Run, rnd: Round, peer: PeerId) -> wire.Plan:
    addresses = {m.peer: m.address for m in run.membership.connected() if m.address is not None}
    member = run.membership.get(peer)
    trains = member is not None and member.trains
    return wire.Plan(
        round=rnd.id,
        version=rnd.version,
        fragment=0,
        first_step=(rnd.id - 1) * run.config.sync.inner_steps,
        codec=run.config.sync.codec,
        update_codec=run.config.sync.update_codec,
        reductions=tuple(
            wire.Reduction(reducer=addresses[reducer], start=start, stop=stop)
            for reducer, start, stop in plan.runs(rnd.assignment)
            if reducer in addresses
        ),
        leases=leases.held_by(run.book, peer) if trains else (),
        sources=sources(run),
    )


def closed_message(rnd: Round) -> wire.Closed:
    return wire.Closed(round=rnd.id, roster_version=rnd.roster_version, roster=rnd.roster)


def reduce_job(rnd: Round, k: int) -> Effect:
    inputs = tuple(
        wire.ReduceInput(
            peer=share.peer, share=share.share, digest=rnd.claims[share.peer].digests[k]
        )
        for share in rnd.roster
    )
    job = wire.Reduce(round=rnd.id, roster_version=rnd.roster_version, slice=k, inputs=inputs)
    return Send(rnd.assignment[k], job)


def num_tokens(run: Run, peer: PeerId, claim: wire.Contribution) -> int:
    sizes = {lease.id: lease.stop - lease.start for lease in leases.held_by(run.book, peer)}
    return sum(sizes[lease_id] for lease_id in claim.leases) * run.config.data.sequence_length


def plan_report(rnd: Round, reason: str) -> Report:
    return Report(
        events.RoundPlanned(
            round=rnd.id,
            peers=tuple(sorted(rnd.invited | rnd.waited)),
            reducers=tuple(sorted(set(rnd.assignment) - {NOBODY})),
            reason=reason,
        )
    )
