"""The run as the host knows it, and what each thing that happens does to it.

    (run, what happened, now) -> effects

`Run` is a function of the journal (`replay`) and of who is connected. Every function here is
deterministic and does no I/O: the service carries the effects out on real sockets, a test or a
simulation on imagined ones. Each handler ends in `advance`, which does whatever is due.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from atoll import events
from atoll.config import RunConfig, parse_canonical
from atoll.data import leases
from atoll.data.leases import LeaseBook
from atoll.exchange import plan
from atoll.host import rounds
from atoll.host.effects import Append, Drop, Effect, Report, Send, SendCommits
from atoll.host.membership import Member, Membership
from atoll.host.rounds import Round
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.net import records, wire

REPLAY_ROUNDS = 8  # state / int8 update = 8 bytes / 1: beyond, fetching the state is cheaper


@dataclass(slots=True, kw_only=True)
class Run:
    config: RunConfig
    dataset: Digest
    built_in: PeerId
    num_slices: int
    membership: Membership = field(default_factory=Membership)
    book: LeaseBook = field(default_factory=LeaseBook)
    committed: RoundId = INITIAL
    committed_at: float = 0.0
    agreed: dict[RoundId, Digest] = field(default_factory=dict)
    round: Round | None = None
    # Contributors of the round that was open when an earlier host process ended; they may come back.
    expected_back: set[PeerId] = field(default_factory=set)
    ready_at: float | None = None  # since when enough peers are ready for the next round
    departed: set[PeerId] = field(default_factory=set)  # gone, with leases that are not free yet
    num_planned: int = 0

    @property
    def is_complete(self) -> bool:
        return self.committed >= self.config.sync.rounds and self.committed in self.agreed

    @property
    def next_round(self) -> RoundId:
        return RoundId(self.committed + 1)


def config_of(history: list[records.Record]) -> RunConfig:
    """Return the config of the run that this journal tells of."""
    genesis = history[0]
    assert isinstance(genesis, records.Genesis), "a journal begins with its genesis"
    return parse_canonical(genesis.config.encode())


def replay(entries: Iterable[records.Record], *, num_slices: int) -> Run:
    """Return the run that these records, a whole journal, tell of. Nobody is connected."""
    run: Run | None = None
    for record in entries:
        if isinstance(record, records.Genesis):
            run = Run(
                config=parse_canonical(record.config.encode()),
                dataset=record.dataset,
                built_in=record.built_in,
                num_slices=num_slices,
            )
        assert run is not None, "a journal begins with its genesis"
        _replay_one(run, record)
    assert run is not None, "a journal has at least its genesis"
    run.departed = set(run.book.held) - run.expected_back
    return run


def _replay_one(run: Run, record: records.Record) -> None:
    match record:
        case records.Leased(peer=peer, leases=granted):
            num_samples = sum(lease.stop - lease.start for lease in granted)
            run.book, again = leases.grant(run.book, peer, num_samples=num_samples)
            assert again == granted, "grants are a function of the journal"
        case records.Released(leases=ids):
            run.book = leases.release(run.book, ids)
        case records.Planned(peers=peers):
            run.expected_back = set(peers)
            run.num_planned += 1
        case records.Committed(round=round_id, roster=roster):
            run.book = leases.commit(run.book, [i for entry in roster for i in entry.leases])
            run.committed = round_id
            run.expected_back = set()
        case records.Agreed(round=round_id, state=state):
            run.agreed[round_id] = state
        case _:
            pass  # admission.py reads the others


# --- what happens --------------------------------------------------------------------------------


def on_hello(run: Run, member: Member, hello: wire.Hello, *, now: float) -> list[Effect]:
    """A peer connected, and says which state it holds: tell it how to catch up."""
    peer = member.peer
    if hello.round > run.committed:
        reason = f"your state is of round {hello.round}, but this run is at {run.committed}"
        hint = "the host's journal was set back; ask its operator, or start with a new directory"
        return [Send(peer, wire.Refused(reason=reason, hint=hint)), Drop(peer, reason)]
    run.membership.enter(member, now=now)
    run.departed.discard(peer)
    held = leases.held_by(run.book, peer)
    base_round, base_state = _base(run, hello)
    welcome = wire.Welcome(
        committed=run.committed,
        base_round=base_round,
        base_state=base_state,
        dataset=run.dataset,
        held=held,
        reset=not {lease.id for lease in held}.issuperset(hello.trained),
        sources=_sources(run),
    )
    return [Send(peer, welcome), SendCommits(peer, base_round), *advance(run, now=now)]


def on_probed(run: Run, peer: PeerId, address: wire.Address | None, *, now: float) -> list[Effect]:
    """The host tried to reach the peer at the address that it named."""
    member = run.membership.get(peer)
    if member is None or not member.connected:
        return []
    run.membership.reach(peer, address)
    effects: list[Effect] = []
    if run.round is not None and _is_ready(run, peer):
        effects = _invite(run, run.round, peer)
    return effects + advance(run, now=now)


def on_lost(run: Run, peer: PeerId, reason: str, *, now: float) -> list[Effect]:
    """The peer's connection ended; it may come back."""
    member = run.membership.get(peer)
    if member is None or not member.connected:
        return []
    run.membership.lose(peer, now=now)
    left = events.PeerLeft(peer=peer, name=member.name, reason=reason)
    return [Report(left), *advance(run, now=now)]


def on_message(run: Run, peer: PeerId, message: wire.Message, *, now: float) -> list[Effect]:
    """A connected peer said something. Messages about a round that is over change nothing."""
    run.membership.hear(peer, now=now)
    effects: list[Effect] = []
    match message:
        case wire.Heartbeat() as beat:
            effects = _report_training(peer, beat)
        case wire.AtState():
            effects = _on_at_state(run, peer, message)
        case wire.Leaving(reason=reason):
            effects = _on_leaving(run, peer, reason)
        case _ if run.round is not None:
            _note(run, run.round, peer, message, now=now)
    return effects + advance(run, now=now)


def on_tick(run: Run, *, now: float) -> list[Effect]:
    """Time has passed."""
    effects: list[Effect] = []
    for peer in run.membership.silent(run.config.sync, now=now):
        reason = f"silent for more than {run.config.sync.silent_s:g} s"
        effects += [Drop(peer, reason), *on_lost(run, peer, reason, now=now)]
    for peer in run.membership.overdue(run.config.sync, now=now):
        run.membership.remove(peer)
        run.departed.add(peer)
    return effects + advance(run, now=now)


def _note(run: Run, rnd: Round, peer: PeerId, message: wire.Message, *, now: float) -> None:
    match message:
        case wire.Contribution() if message.round == rnd.id:
            held = {lease.id for lease in leases.held_by(run.book, peer)}
            if message.leases and held.issuperset(message.leases):
                rounds.claim(rnd, peer, message, now=now)
        case wire.Delivered() if message.round == rnd.id:
            rounds.deliver(rnd, peer, message, now=now)
        case wire.Reduced() if message.round == rnd.id:
            rounds.reduce(rnd, peer, message, now=now)
        case wire.Held() if message.round == rnd.id:
            rounds.hold(rnd, peer, message, now=now)
        case wire.Unreachable() if message.round == rnd.id:
            rounds.complain(rnd, peer, message.reducer)
        case _:
            pass


def _report_training(peer: PeerId, beat: wire.Heartbeat) -> list[Effect]:
    if not beat.step:
        return []
    training = events.Training(
        peer=peer,
        round=beat.round,
        step=beat.step,
        loss=beat.loss,
        tokens_per_s=beat.tokens_per_s,
    )
    return [Report(training)]


def _on_at_state(run: Run, peer: PeerId, message: wire.AtState) -> list[Effect]:
    """The peer is ready for what follows its state; the first time, that is news."""
    effects: list[Effect] = []
    member = run.membership.get(peer)
    if member is not None and member.state is None:
        reachable = member.address is not None
        joined = events.PeerJoined(
            peer=peer, name=member.name, device=message.device, reachable=reachable
        )
        effects.append(Report(joined))
    round_id, state = message.round, message.state
    run.membership.report(peer, round_id=round_id, state=state, device=message.device)
    agreed = run.agreed.get(round_id)
    if agreed is not None and agreed != state:
        effects += _resync(run, peer, round_id, state)
    elif run.round is not None and _is_ready(run, peer):
        effects += _invite(run, run.round, peer)
    return effects


def _on_leaving(run: Run, peer: PeerId, reason: str) -> list[Effect]:
    member = run.membership.get(peer)
    name = member.name if member else ""
    run.membership.remove(peer)
    run.departed.add(peer)
    left = events.PeerLeft(peer=peer, name=name, reason=reason or "left")
    return [Report(left), Drop(peer, "it left")]


# --- what is due ---------------------------------------------------------------------------------


def advance(run: Run, *, now: float) -> list[Effect]:
    """Do all that is due: agree on a state, free leases, open, close, reduce, commit."""
    effects = _agree(run)
    effects += _free_departed(run)
    effects += _open(run, now=now)
    while run.round is not None:
        due = _act(run, run.round, now=now)
        if not due:
            break
        effects += due
    return effects


def _agree(run: Run) -> list[Effect]:
    """Settle on the state that most members report for the newest commit."""
    round_id = run.committed
    if round_id in run.agreed:
        return []
    current = [m for m in run.membership.connected() if m.round >= round_id - 1]
    reports = {m.peer: m.state for m in current if m.round == round_id and m.state is not None}
    votes = Counter(reports.values())
    if not votes:
        return []
    built_in = reports.get(run.built_in)
    best = max(votes, key=lambda state: (votes[state], state == built_in, state))
    if 2 * votes[best] <= len(current) and len(reports) < len(current):
        return []
    run.agreed[round_id] = best
    peers = tuple(peer for peer, state in reports.items() if state == best)
    effects: list[Effect] = [
        Append((records.Agreed(round=round_id, state=best, peers=peers),)),
        Report(events.StateAgreed(round=round_id, digest=best, peers=peers)),
    ]
    for peer, state in reports.items():
        if state != best:
            effects += _resync(run, peer, round_id, state)
    return effects


def _resync(run: Run, peer: PeerId, round_id: RoundId, state: Digest) -> list[Effect]:
    """Tell the peer to fetch the newest agreed state, and count it out until it has."""
    newest = max(run.agreed)
    run.membership.report(peer, round_id=INITIAL, state=None)
    differs = events.StateDiffers(
        round=round_id, peer=peer, digest=state, agreed=run.agreed[round_id]
    )
    resync = wire.Resync(round=newest, state=run.agreed[newest])
    return [Report(differs), Send(peer, resync), SendCommits(peer, newest)]


def _free_departed(run: Run) -> list[Effect]:
    """Put the leases of those who left or died back, unless an open round may still commit them."""
    freed: list[records.Record] = []
    for peer in sorted(run.departed):
        if run.round is not None and _may_commit(run.round, peer):
            continue
        run.departed.discard(peer)
        if run.round is not None:
            run.round.claims.pop(peer, None)
        ids = tuple(lease.id for lease in leases.held_by(run.book, peer))
        if ids:
            run.book = leases.release(run.book, ids)
            freed.append(records.Released(peer=peer, leases=ids, reason="its holder is gone"))
    return [Append(tuple(freed))] if freed else []


def _may_commit(rnd: Round, peer: PeerId) -> bool:
    return peer in rnd.completed_at or any(share.peer == peer for share in rnd.roster)


def _open(run: Run, *, now: float) -> list[Effect]:
    """Open the next round once those who may be ready in a moment are, or that moment is over."""
    policy = run.config.sync
    ready = [m.peer for m in run.membership.connected() if _is_ready(run, m.peer)]
    if run.round is not None or run.committed >= policy.rounds or len(ready) < policy.min_peers:
        run.ready_at = None
        return []
    if run.ready_at is None:
        run.ready_at = now
    soon = {
        m.peer for m in run.membership.connected() if m.trains and m.round >= run.committed - 1
    } | (run.expected_back - run.departed)
    if not soon.issubset(ready) and now < run.ready_at + policy.grace_floor_s:
        return []
    reducers = _reducers(run)
    if not reducers:
        return []
    run.ready_at = None
    run.expected_back = set()
    assignment = plan.assign(run.num_slices, reducers)
    # No version is used twice, also not by the host process that goes on with a round.
    run.num_planned += 1
    version = run.num_planned << 12
    run.round = Round(
        id=run.next_round,
        opened_at=now,
        waited=set(ready),
        assignment=assignment,
        version=version,
        roster_version=version,
    )
    planned = records.Planned(round=run.next_round, peers=tuple(ready))
    effects: list[Effect] = [Append((planned,)), _report_plan(run.round, "a new round")]
    for member in run.membership.connected():
        if member.round == run.committed and member.state == run.agreed[run.committed]:
            effects += _invite(run, run.round, member.peer)
    return effects


def _invite(run: Run, rnd: Round, peer: PeerId) -> list[Effect]:
    """Send the peer the plan, and leases for all the inner steps of a round if it trains."""
    effects: list[Effect] = []
    member = run.membership.get(peer)
    if member is not None and member.trains:
        rnd.invited.add(peer)
        held = leases.held_by(run.book, peer)
        wanted = run.config.samples_per_round - sum(lease.stop - lease.start for lease in held)
        if wanted > 0:
            run.book, granted = leases.grant(run.book, peer, num_samples=wanted)
            effects.append(Append((records.Leased(peer=peer, leases=granted),)))
    effects.append(Send(peer, _plan_for(run, rnd, peer)))
    if rnd.phase is rounds.Phase.REDUCE:
        effects.append(Send(peer, _closed(rnd)))
    return effects


def _act(run: Run, rnd: Round, *, now: float) -> list[Effect]:
    """Carry out what `rounds.decide` finds due; nothing due, nothing done."""
    connected = frozenset(m.peer for m in run.membership.connected())
    able = frozenset(
        m.peer for m in run.membership.connected() if m.round == run.committed and m.state
    )
    decision = rounds.decide(
        rnd,
        now=now,
        connected=connected,
        away=frozenset(run.membership.members) - connected,
        able=able,
        policy=run.config.sync,
    )
    match decision:
        case rounds.Close(peers=peers, reason=reason):
            return _close(run, rnd, peers, reason, now=now)
        case rounds.Replace(reducers=lost, reason=reason):
            return _replace(run, rnd, lost, reason, now=now)
        case rounds.Reopen():
            rounds.reopen(rnd)
            return [_report_plan(rnd, decision.reason)]
        case rounds.Commit():
            return _commit(run, rnd, now=now)
        case _:
            return []


def _close(
    run: Run, rnd: Round, peers: tuple[PeerId, ...], reason: str, *, now: float
) -> list[Effect]:
    num_tokens = {peer: _num_tokens(run, peer, rnd.claims[peer]) for peer in peers}
    roster = rounds.roster_of(rnd, peers, num_tokens=num_tokens, policy=run.config.sync)
    rounds.close(rnd, roster, now=now)
    missing = tuple(sorted(rnd.waited - set(peers)))
    closed = events.RoundClosed(round=rnd.id, roster=peers, missing=missing, reason=reason)
    effects: list[Effect] = [Report(closed)]
    effects += [Send(m.peer, _closed(rnd)) for m in run.membership.connected()]
    return effects + [_reduce(rnd, k) for k in range(run.num_slices)]


def _replace(
    run: Run, rnd: Round, lost: frozenset[PeerId], reason: str, *, now: float
) -> list[Effect]:
    candidates = [peer for peer in _reducers(run) if peer not in lost | set(rnd.complaints)]
    if not candidates:
        candidates = [peer for peer in (run.built_in,) if run.membership.is_connected(peer)]
    if not candidates or lost.issuperset(candidates):
        return []  # until somebody comes
    assignment = plan.reassign(rnd.assignment, lost=lost, reducers=candidates)
    moved = rounds.reassign(rnd, assignment, now=now)
    effects: list[Effect] = [_report_plan(rnd, reason)]
    for member in run.membership.connected():
        if member.round == run.committed and member.state is not None:
            effects.append(Send(member.peer, _plan_for(run, rnd, member.peer)))
    if rnd.phase is rounds.Phase.REDUCE:
        effects += [_reduce(rnd, k) for k in moved]
    return effects


def _commit(run: Run, rnd: Round, *, now: float) -> list[Effect]:
    entries = tuple(_roster_entry(rnd, share) for share in rnd.roster)
    updates = tuple(
        records.SliceUpdate(digest=rnd.reduced[k].digest, num_bytes=rnd.reduced[k].num_bytes)
        for k in range(run.num_slices)
    )
    record = records.Committed(
        round=rnd.id,
        fragment=0,
        codec=run.config.sync.codec,
        update_codec=run.config.sync.update_codec,
        roster=entries,
        updates=updates,
    )
    run.book = leases.commit(run.book, [i for entry in entries for i in entry.leases])
    before, run.committed, run.round = run.committed, rnd.id, None
    run.committed_at = now
    tokens = sum(entry.num_tokens for entry in entries)
    report = events.RoundCommitted(
        round=rnd.id,
        roster=tuple(entry.peer for entry in entries),
        num_tokens=tokens,
        mean_loss=sum(entry.mean_loss * entry.num_tokens for entry in entries) / tokens,
        update_bytes=sum(update.num_bytes for update in updates),
        seconds=now - rnd.opened_at,
    )
    effects: list[Effect] = [Append((record,))]
    effects += [SendCommits(m.peer, before) for m in run.membership.connected()]
    return [*effects, Report(report)]


def _roster_entry(rnd: Round, share: wire.Share) -> records.RosterEntry:
    claim = rnd.claims[share.peer]
    return records.RosterEntry(
        peer=share.peer,
        share=share.share,
        num_tokens=share.num_tokens,
        num_steps=claim.num_steps,
        mean_loss=claim.mean_loss,
        leases=claim.leases,
        contribution=records.contribution_digest(claim.digests),
    )


# --- views ---------------------------------------------------------------------------------------


def _is_ready(run: Run, peer: PeerId) -> bool:
    """Return whether the peer can train on the next round now."""
    m = run.membership.get(peer)
    if m is None or not (m.connected and m.trains and m.probed):
        return False
    return m.round == run.committed and m.state == run.agreed.get(run.committed, "")


def _base(run: Run, hello: wire.Hello) -> tuple[RoundId, Digest]:
    """Return the state that the peer starts to catch up from: its own if that is any good."""
    agreed = run.agreed.get(hello.round)
    near = run.committed - hello.round <= REPLAY_ROUNDS
    if not run.agreed or (near and agreed in (None, hello.state)):
        return hello.round, hello.state
    newest = max(run.agreed)
    return newest, run.agreed[newest]


def _sources(run: Run) -> tuple[wire.Address, ...]:
    """Return who can be asked for blobs, the host's built-in member last."""
    members = sorted(run.membership.connected(), key=lambda m: m.peer == run.built_in)
    return tuple(m.address for m in members if m.address is not None)


def _reducers(run: Run) -> list[PeerId]:
    """Return who may reduce: the peers that others can reach; with none, the built-in member."""
    peers = [
        m.peer
        for m in run.membership.connected()
        if m.address is not None and m.trains and m.round == run.committed
    ]
    return peers or [run.built_in] * run.membership.is_connected(run.built_in)


def _plan_for(run: Run, rnd: Round, peer: PeerId) -> wire.Plan:
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
        sources=_sources(run),
    )


def _closed(rnd: Round) -> wire.Closed:
    return wire.Closed(round=rnd.id, roster_version=rnd.roster_version, roster=rnd.roster)


def _reduce(rnd: Round, k: int) -> Effect:
    inputs = tuple(
        wire.ReduceInput(
            peer=share.peer, share=share.share, digest=rnd.claims[share.peer].digests[k]
        )
        for share in rnd.roster
    )
    job = wire.Reduce(round=rnd.id, roster_version=rnd.roster_version, slice=k, inputs=inputs)
    return Send(rnd.assignment[k], job)


def _num_tokens(run: Run, peer: PeerId, claim: wire.Contribution) -> int:
    sizes = {lease.id: lease.stop - lease.start for lease in leases.held_by(run.book, peer)}
    return sum(sizes[lease_id] for lease_id in claim.leases) * run.config.data.sequence_length


def _report_plan(rnd: Round, reason: str) -> Report:
    return Report(
        events.RoundPlanned(
            round=rnd.id,
            peers=tuple(sorted(rnd.invited | rnd.waited)),
            reducers=tuple(sorted(set(rnd.assignment))),
            reason=reason,
        )
    )
