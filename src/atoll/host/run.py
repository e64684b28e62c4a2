"""What happens to a run, and what the host does about it.

    (run, what happened, now) -> effects

Every function here is deterministic and does no I/O: the service carries the effects out on real
sockets, a test or a simulation on imagined ones. `replay` makes a run from its journal.

A handler notes what happened, and answers who said it: that costs the same however many members
there are. What is due depends on everybody, so `advance` looks for it once for all that happened
within `settle_s`, and with each tick.
"""

from collections.abc import Iterable
from math import isfinite
from typing import TypeAlias

from atoll import events
from atoll.config import RunConfig, parse_canonical
from atoll.host import evaluation, rounds
from atoll.host.due import advance, count_claim, invite, relieve, resync, take_traffic
from atoll.host.effects import Append, Drop, Effect, Report, Send, SendCommits
from atoll.host.membership import Member
from atoll.host.numbers import FASTEST, is_loss
from atoll.host.open_round import Round
from atoll.host.state import Run, base_for, is_able, num_unclaimed, sources
from atoll.ids import INITIAL, PeerId, RoundId
from atoll.net import records, wire
from atoll.sentences import one_line
from atoll.traffic import Traffic

LONGEST_TRIP_S = 2.0  # what is longer is a queue on somebody's line, or a lie
SETTLE_S = 2e-5  # for each member, before all is done that is due: seven times what that takes

# What members say about an open round.
OfRound: TypeAlias = (
    wire.Contribution | wire.Delivered | wire.Reduced | wire.Held | wire.Fetched | wire.Unreachable
)


def config_of(history: list[records.Record]) -> RunConfig:
    """Return the config of the run that this journal tells of."""
    genesis = history[0]
    assert isinstance(genesis, records.Genesis), "a journal begins with its genesis"
    return parse_canonical(genesis.config.encode())


def replay(
    entries: Iterable[records.Record],
    *,
    slice_bytes: tuple[tuple[int, ...], ...],
    contribution_bytes: tuple[int, ...] = (),
    partial_bytes: tuple[int, ...] = (),
    now: float = 0.0,
) -> Run:
    """Return the run that these records, a whole journal, tell of.

    Nobody is connected; whoever holds leases is away since `now`, and has the usual time to return.
    `slice_bytes` are those of each update of each fragment, `contribution_bytes` those of a whole
    contribution to each, and `partial_bytes` those of its partial sums, where they differ.
    """
    run: Run | None = None
    for record in entries:
        if isinstance(record, records.Genesis):
            run = Run(
                config=parse_canonical(record.config.encode()),
                dataset=record.dataset,
                built_in=record.built_in,
                slice_bytes=slice_bytes,
                contribution_bytes=contribution_bytes or tuple(map(sum, slice_bytes)),
                partial_bytes=partial_bytes or tuple(map(sum, slice_bytes)),
                unseen={record.built_in},
            )
        assert run is not None, "a journal begins with its genesis"
        _replay_one(run, record)
    assert run is not None, "a journal has at least its genesis"
    run.started_at = now
    for peer in (peer for peer, held in run.book.held.items() if held):
        run.membership.expect(peer, now=now)
    return run


def _replay_one(run: Run, record: records.Record) -> None:  # noqa: C901, PLR0912 - one case each
    match record:
        case records.Leased(peer=peer, leases=granted):
            num_samples = sum(lease.num_samples for lease in granted)
            again = run.book.grant(peer, num_samples=num_samples)
            assert again == granted, "grants are a function of the journal"
        case records.Released(peer=peer, leases=ids):
            run.book.release(peer, ids)
            run.fresh.pop(peer, None)
        case records.Planned():
            run.num_planned += 1
        case records.Committed(round=round_id):
            run.note_committed(record)
            run.committed = round_id
        case records.Agreed(round=round_id, state=state):
            run.agreed[round_id] = state
        case records.Evaluated(round=round_id):
            run.evaluated = round_id
        case records.Paused() | records.Resumed():
            run.is_paused = isinstance(record, records.Paused)
        case records.ReducersChosen(peers=peers):
            run.chosen_reducers = frozenset(peers)
        case records.Admitted(peer=peer):
            run.unseen.add(peer)
        case records.Removed(peer=peer):
            run.unseen.discard(peer)
        case _:
            pass  # admission.py reads the others


def settle_s(run: Run) -> float:
    """Return for how long what happened may wait for `advance`."""
    return SETTLE_S * len(run.membership.members)


def on_hello(run: Run, member: Member, hello: wire.Hello, *, now: float) -> list[Effect]:
    """A peer connected, and says which state it holds: tell it how to catch up."""
    peer = member.peer
    if not 0 <= hello.round <= run.committed:
        reason = f"your state is of round {hello.round}, but this run is at {run.committed}"
        hint = "the host's journal was set back; ask its operator, or start with a new directory"
        return [Send(peer, wire.Refused(reason=reason, hint=hint)), Drop(peer, reason)]
    run.membership.enter(member, now=now)
    for rnd in run.open_rounds.values():
        rounds.forget_said(rnd, peer)  # it may be another process by now
    run.departed.discard(peer)
    run.unseen.discard(peer)
    base_round, base_state = base_for(run, hello)
    # The commits that it has not heard of follow, and settle what they committed of its leases.
    held = run.held_at(peer, base_round)
    welcome = wire.Welcome(
        committed=run.committed,
        base_round=base_round,
        base_state=base_state,
        dataset=run.dataset,
        held=held,
        reset=not {lease.id for lease in held}.issuperset(hello.trained),
        sources=sources(run, peer),
    )
    return [Send(peer, welcome), SendCommits(peer, base_round, run.committed)]


def on_probed(run: Run, peer: PeerId, address: wire.Address | None, *, now: float) -> list[Effect]:
    """The host tried to reach the peer at the address that it named."""
    member = run.membership.get(peer)
    if member is None or not member.connected:
        return []
    run.membership.reach(peer, address)
    if address is not None:
        run.membership.hear(peer, now=now)
    return _welcome_in(run, peer) if member.state is not None and not member.probed else []


def on_lost(run: Run, peer: PeerId, reason: str, *, now: float) -> list[Effect]:
    """The peer's connection ended; it may come back."""
    member = run.membership.get(peer)
    if member is None or not member.connected:
        return []
    run.membership.lose(peer, now=now)
    left = events.PeerLeft(peer=peer, name=member.name, reason=reason)
    return [Report(left), *_replace_reducer(run, peer, now=now)]


def on_message(run: Run, peer: PeerId, message: wire.Message, *, now: float) -> list[Effect]:
    """A connected peer said something. Messages about a round that is over change nothing."""
    run.membership.hear(peer, now=now)
    match message:
        case wire.Heartbeat() as beat:
            return _report_training(peer, beat)
        case wire.AtState():
            return _on_at_state(run, peer, message)
        case wire.Resting(rests=rests):
            return _on_resting(run, peer, rests=rests)
        case wire.Evaluated():
            return evaluation.note(run, peer, message)
        case wire.Leaving():
            return _on_leaving(run, peer, message, now=now)
        case _ if isinstance(message, OfRound) and message.round in run.open_rounds:
            _note(run, run.open_rounds[message.round], peer, message, now=now)
            return _supply(run, peer)
        case _:
            return []


def on_end(run: Run) -> list[Effect]:
    """The host ends: put on record what no agreement tells of."""
    traffic = take_traffic(run)
    return [Append((records.Moved(traffic=traffic),))] if traffic else []


def on_tick(run: Run, *, now: float) -> list[Effect]:
    """Time has passed."""
    effects: list[Effect] = []
    for peer in run.membership.silent(run.config.sync, now=now):
        reason = f"silent for more than {run.config.sync.silent_s:g} s"
        effects += [Drop(peer, reason), *on_lost(run, peer, reason, now=now)]
    for peer in run.membership.overdue(run.config.sync, now=now):
        run.membership.remove(peer)
        run.departed.add(peer)
    effects += advance(run, now=now)
    return effects + relieve(run, now=now)


def _note(run: Run, rnd: Round, peer: PeerId, message: OfRound, *, now: float) -> None:
    match message:
        case wire.Contribution():
            _claim(run, rnd, peer, message, now=now)
        case wire.Delivered():
            rounds.deliver(rnd, peer, message, now=now)
        case wire.Reduced():
            rounds.reduce(rnd, peer, message, now=now)
        case wire.Held():
            rounds.hold(rnd, peer, message, now=now)
        case wire.Fetched():
            rounds.fetch(rnd, peer, message, now=now)
        case wire.Unreachable():
            if is_able(run, peer, rnd.id) or peer in rnd.claims:
                rounds.complain(rnd, peer, message.reducer)


def _supply(run: Run, peer: PeerId) -> list[Effect]:
    """Give the peer more work if it has offered all of it, and an open round waits for more."""
    if num_unclaimed(run, peer):
        return []
    waiting = [
        rnd
        for rnd in run.open_rounds.values()
        if peer in rnd.invited and peer not in rnd.said and is_able(run, peer, rnd.id)
    ]
    has_claimed = any(peer in rnd.said for rnd in run.open_rounds.values())
    return invite(run, waiting[0], [peer]) if waiting and has_claimed else []


def _claim(run: Run, rnd: Round, peer: PeerId, message: wire.Contribution, *, now: float) -> None:
    """Note what the peer offers to a round: leases that it holds, also for other open rounds.

    The commits of some it may not have heard of yet.
    """
    held = {lease.id for lease in run.held_at(peer, INITIAL)}
    named = set(message.leases)
    is_sane = held >= named and len(named) == len(message.leases)
    if is_sane:
        rounds.claim(rnd, peer, message, now=now)
        count_claim(run, rnd, peer, now=now)


def _report_training(peer: PeerId, beat: wire.Heartbeat) -> list[Effect]:
    if not (beat.step and is_loss(beat.loss) and 0 <= beat.tokens_per_s <= FASTEST):
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
    """The peer is ready for what follows its state."""
    round_id, state = message.round, message.state
    if not 0 <= round_id <= run.committed:
        return [Drop(peer, f"it says that it is at round {round_id}")]
    _note_traffic(run, peer, message.traffic)
    before = run.membership.get(peer)
    run.membership.report(peer, round_id=round_id, state=state, device=message.device)
    run.membership.measure(
        peer,
        up=message.up_bytes_per_s,
        down=message.down_bytes_per_s,
        samples_per_s=message.samples_per_s,
        peak_flops=message.peak_flops,
    )
    _note_round_trips(run, peer, message.round_trips)
    agreed = run.agreed.get(round_id)
    if agreed is not None and agreed != state:
        return resync(run, peer, round_id, state)
    if before is not None and before.state is None and before.probed:
        return _welcome_in(run, peer)
    # It has the plans of the rounds that it could start already, unless it has begun anew.
    goes_on = before is not None and before.state is not None and before.round < round_id
    return _invite(run, peer, after=before.round if before is not None and goes_on else None)


def _welcome_in(run: Run, peer: PeerId) -> list[Effect]:
    """The peer is ready, and the host knows who can reach it: that is news."""
    member = run.membership.members[peer]
    joined = events.PeerJoined(
        peer=peer,
        name=member.name,
        device=member.device,
        peak_flops=member.peak_flops,
        reachable=member.address is not None,
        place=member.place,
        trains=member.trains,
    )
    rests = events.PeerRests(peer=peer, name=member.name, rests=True)
    return [Report(joined), *([Report(rests)] if member.rests else []), *_invite(run, peer)]


def _invite(run: Run, peer: PeerId, *, after: RoundId | None = None) -> list[Effect]:
    """Send the plans of the open rounds that the peer can start; not those that it could before.

    That is, from its state of the round `after`.
    """
    in_flight = run.config.sync.in_flight
    effects: list[Effect] = []
    for rnd in run.open_rounds.values():
        is_new = after is None or rnd.id > after + in_flight
        if is_new and is_able(run, peer, rnd.id):
            effects += invite(run, rnd, [peer])
    return effects


def _on_resting(run: Run, peer: PeerId, *, rests: bool) -> list[Effect]:
    """The peer's owner has paused it, or lets it go on: then it gets the plans that it lacks."""
    member = run.membership.get(peer)
    if member is None or member.rests == rests:
        return []
    run.membership.rest(peer, rests=rests)
    report = Report(events.PeerRests(peer=peer, name=member.name, rests=rests))
    return [report] if rests else [report, *_invite(run, peer)]


def _note_round_trips(run: Run, peer: PeerId, told: tuple[wire.RoundTrip, ...]) -> None:
    """Note how far away others are from the peer: those of whom it has told last."""
    known = run.round_trips.pop(peer, {}) if told else {}
    for one in told:
        if isfinite(one.seconds) and one.seconds > 0 and one.peer != peer:
            known.pop(one.peer, None)
            known[one.peer] = min(one.seconds, LONGEST_TRIP_S)
    if known:
        run.round_trips[peer] = dict(list(known.items())[-wire.MAX_ROUND_TRIPS :])


def _note_traffic(run: Run, peer: PeerId, moved: Traffic) -> None:
    if moved.sent or moved.received:
        run.traffic[peer] = run.traffic.get(peer, Traffic()) + moved


def _on_leaving(run: Run, peer: PeerId, message: wire.Leaving, *, now: float) -> list[Effect]:
    _note_traffic(run, peer, message.traffic)
    member = run.membership.get(peer)
    name = member.name if member else ""
    run.membership.remove(peer)
    run.departed.add(peer)
    left = events.PeerLeft(peer=peer, name=name, reason=one_line(message.reason) or "left")
    return [Report(left), Drop(peer, "it left"), *_replace_reducer(run, peer, now=now)]


def _replace_reducer(run: Run, peer: PeerId, *, now: float) -> list[Effect]:
    """Let others reduce what a peer did that is gone, if anything.

    At once: it may be back, and have lost what it had, before `advance` is due.
    """
    reduces = any(peer in rnd.assignment for rnd in run.open_rounds.values())
    return advance(run, now=now) if reduces else []
