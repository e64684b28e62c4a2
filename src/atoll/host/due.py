"""What is due in a run, and doing it: agree, free leases, open, close, reduce, commit.

Each function changes the run and returns the effects of that; `advance` does all that is due now.
"""

from collections import Counter
from collections.abc import Iterable

from atoll import events
from atoll.exchange.regions import assign_places
from atoll.host import rounds
from atoll.host.decision import Close, Commit, Decision, Expect, Reopen, Replace, Share
from atoll.host.effects import Append, Effect, Report, Send, SendCommits
from atoll.host.evaluation import evaluate
from atoll.host.open_round import Phase, Round
from atoll.host.orders import announced, closed_message, moved, plan_report, plans_for
from atoll.host.places import division, let_sit_out, locate, reducers, replaced
from atoll.host.relief import relieve as relieve_reducers
from atoll.host.state import (
    Run,
    is_ready,
    leases_of,
    middle_speed,
    num_tokens,
    num_unclaimed,
    present,
    samples_of_round,
)
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.net import records, wire

MANY_MORE = 2  # times as many who can reduce as regions, or as before: it is worth the plans


def advance(run: Run, *, now: float) -> list[Effect]:
    """Do all that is due: agree on a state, free leases, open, close, reduce, commit."""
    effects = _agree(run)
    effects += _free_departed(run, now=now)
    effects += _open(run, now=now)
    for rnd in list(run.open_rounds.values()):
        effects += _divide_anew(run, rnd)
        while rnd.id in run.open_rounds and (due := _act(run, rnd, now=now)):
            effects += due
    return effects + evaluate(run, now=now)


def _agree(run: Run) -> list[Effect]:
    """Settle on the state that most members report for the newest commit."""
    round_id = run.committed
    if round_id in run.agreed:
        return []
    # Whoever is taking the step of this round has a say; who has reported no state yet, none.
    current = [
        m for m in run.membership.connected() if m.state is not None and m.round >= round_id - 1
    ]
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
    agreed = records.Agreed(round=round_id, state=best, peers=peers, traffic=take_traffic(run))
    effects: list[Effect] = [
        Append((agreed,)),
        Report(events.StateAgreed(round=round_id, digest=best, peers=peers)),
    ]
    for peer, state in reports.items():
        if state != best:
            effects += resync(run, peer, round_id, state)
    return effects


def take_traffic(run: Run) -> tuple[records.PeerTraffic, ...]:
    """Return what members have told of the bytes that they moved, once."""
    told, run.traffic = run.traffic, {}
    return tuple(
        records.PeerTraffic(peer=peer, traffic=moved) for peer, moved in sorted(told.items())
    )


def resync(run: Run, peer: PeerId, round_id: RoundId, state: Digest) -> list[Effect]:
    """Tell the peer to fetch the newest agreed state, and count it out until it has."""
    newest = run.newest_base
    run.membership.report(peer, round_id=INITIAL, state=None)
    differs = events.StateDiffers(
        round=round_id, peer=peer, digest=state, agreed=run.agreed[round_id]
    )
    resync = wire.Resync(round=newest, state=run.agreed[newest])
    return [Report(differs), Send(peer, resync), SendCommits(peer, newest, run.committed)]


def _free_departed(run: Run, *, now: float) -> list[Effect]:
    """Put the leases of those who left or died back, unless an open round may still commit them."""
    freed: list[records.Record] = []
    for peer in sorted(run.departed):
        if any(_may_commit(rnd, peer) for rnd in run.open_rounds.values()):
            continue
        run.departed.discard(peer)
        ids = tuple(lease.id for lease in run.book.held_by(peer))
        if ids or any(run.fresh.get(peer, ())):
            run.book.release(peer, ids)
            run.fresh.pop(peer, None)
            freed.append(records.Released(peer=peer, leases=ids, reason="its holder is gone"))
        for rnd in run.open_rounds.values():
            rounds.forget_said(rnd, peer)
            count_claim(run, rnd, peer, now=now)
    return [Append(tuple(freed))] if freed else []


def _may_commit(rnd: Round, peer: PeerId) -> bool:
    return peer in rnd.completed_at or peer in rnd.in_roster


def _open(run: Run, *, now: float) -> list[Effect]:
    """Open the next round once those who may be ready in a moment are, or that moment is over."""
    policy, round_id = run.config.sync, run.next_to_open
    ready = []
    if _may_open(run, round_id):
        ready = [m.peer for m in run.membership.connected() if is_ready(run, m.peer, round_id)]
    if len(ready) < max(1, policy.min_peers):
        run.ready_at = None
        return []
    if run.ready_at is None:
        run.ready_at = now
    nearly = round_id - policy.in_flight - 1  # one step is missing
    here = run.membership.connected()
    soon = {m.peer for m in here if m.trains and m.round >= nearly}
    if now < run.started_at + policy.reconnect_s:  # after a restart all have to find us again
        soon |= {peer for peer, held in run.book.held.items() if held and peer in run.membership}
    soon -= {m.peer for m in here if m.rests}
    if not soon.issubset(ready) and now < run.ready_at + policy.grace_floor_s:
        return []
    chosen = reducers(run, round_id)
    if not chosen:
        return []
    run.ready_at = None
    locate(run)
    divided = division(run, round_id, chosen)
    # No version is used twice, also not by the host process that goes on with a round.
    run.num_planned += 1
    version = run.num_planned << 12
    rnd = run.open_rounds[round_id] = Round(
        id=round_id,
        opened_at=now,
        waited=set(ready),
        assignment=assign_places(divided),
        widths=divided.tree.widths,
        num_able=len(chosen),
        regions=dict(divided.regions),
        version=version,
        roster_version=version,
        usual_s=run.usual_exchange_s,
        usual_wait_s=run.usual_wait_s,
        middle_speed=middle_speed(run),
    )
    planned = records.Planned(round=round_id, peers=tuple(ready))
    effects: list[Effect] = [Append((planned,)), plan_report(rnd, "a new round")]
    return effects + invite(run, rnd, sorted(present(run, round_id).able))


def _divide_anew(run: Run, rnd: Round) -> list[Effect]:
    """Divide a round that has grown, if many more can reduce by now.

    As a first round has: it opens with a few, and most come while it is open.
    """
    size = run.config.sync.region_size
    if rnd.phase is not Phase.COLLECT or not run.has_regions:
        return []
    chosen = reducers(run, rnd.id, without=rnd.excluded)
    num_there = rnd.largest_region or run.membership.num_connected - 1  # the built-in one is not
    is_due = num_there > size and len(chosen) >= MANY_MORE * rnd.tree.num_regions
    if not is_due and (not rnd.regions or len(chosen) < MANY_MORE * rnd.num_able):
        return []
    rnd.num_able = len(chosen)
    divided = division(run, rnd.id, chosen)
    rounds.divide_anew(rnd, divided.tree, divided.regions, assign_places(divided))
    here = present(run, rnd.id)
    told = sorted(here.able | (here.resting & rnd.said.keys()))
    return [plan_report(rnd, "many more have come"), *plans_for(run, rnd, told)]


def _may_open(run: Run, round_id: RoundId) -> bool:
    """Return whether there is room in flight, and somebody is at work for this round already."""
    before = run.open_rounds.get(RoundId(round_id - 1))
    has_room = round_id - run.committed <= run.config.sync.in_flight
    return (
        not run.is_paused
        and has_room
        and round_id <= run.config.sync.rounds
        and (before is None or bool(before.claims))
    )


def invite(run: Run, rnd: Round, peers: Iterable[PeerId]) -> list[Effect]:
    """Send these the plan, and leases for all the inner steps of a round to those that train.

    The leases are made durable all at once: a disk takes its time for each append.
    """
    peers = list(peers)
    granted: list[records.Record] = []
    for peer in peers:
        member = run.membership.get(peer)
        if peer != run.built_in:  # it has the updates first, from the root: a commit needs its disk
            rnd.join_region(peer)
        if member is not None and member.trains:
            rnd.invited.add(peer)
            granted += _lease(run, rnd, peer)
    effects: list[Effect] = [Append(tuple(granted))] if granted else []
    effects += plans_for(run, rnd, peers)
    if rnd.announced:
        closed = closed_message(rnd)
        effects += [Send(peer, closed) for peer in peers]
    return effects


def _lease(run: Run, rnd: Round, peer: PeerId) -> list[records.Leased]:
    """Give the peer what it lacks of the work for all rounds in flight; overlapped, and one more.

    A grant fills up the work of one round, so a contribution can end where a lease does.
    """
    sync = run.config.sync
    per_round = rnd.work.setdefault(peer, samples_of_round(run, rnd, peer))
    ahead = sync.in_flight if sync.mode == "overlap" else 0
    num_rounds = min(1 + ahead, sync.rounds - run.committed)
    num_rounds -= sum(peer in other.said for other in run.open_rounds.values())
    lacking = num_rounds * per_round - num_unclaimed(run, peer)
    granted_now = []
    while lacking > 0:
        size = (lacking - 1) % per_round + 1
        granted = run.book.grant(peer, num_samples=size)
        granted_now.append(records.Leased(peer=peer, leases=granted))
        lacking -= size
    return granted_now


def relieve(run: Run, *, now: float) -> list[Effect]:
    """Give the slices of reducers that are too slow to others. Only passing time makes them so."""
    effects: list[Effect] = []
    for rnd in run.open_rounds.values():
        able = present(run, rnd.id)
        due = relieve_reducers(rnd, now=now, present=able, policy=run.config.sync)
        if isinstance(due, Replace):
            effects += _replace(run, rnd, due.reducers, due.reason, now=now)
    return effects


def _act(run: Run, rnd: Round, *, now: float) -> list[Effect]:
    """Carry out what `rounds.decide` finds due; nothing due, nothing done."""
    able = present(run, rnd.id)
    decision = rounds.decide(rnd, now=now, present=able, policy=run.config.sync)
    if not _is_in_order(run, rnd, decision):
        return []
    match decision:
        case Expect(peers=peers):
            rounds.announce(rnd, _roster(run, rnd, peers), now=now)
            return announced(run, rnd)
        case Close(peers=peers, reason=reason):
            return _close(run, rnd, peers, reason, now=now)
        case Replace(reducers=lost, reason=reason):
            return _replace(run, rnd, lost, reason, now=now)
        case Reopen():
            rounds.reopen(rnd)
            _count_anew(run, rnd, now=now)
            return [plan_report(rnd, decision.reason)]
        case Commit():
            return _commit(run, rnd, now=now)
        case _:
            return []


def _is_in_order(run: Run, rnd: Round, decision: Decision) -> bool:
    """Return whether all is done that must come before: rounds close, and end, in their order.

    The weights of a roster count the work in the rosters of the rounds before it.
    """
    match decision:
        case Close() | Expect():
            before = run.open_rounds.get(RoundId(rnd.id - 1))
            return before is None or before.phase is Phase.REDUCE
        case Commit():
            return rnd.id == run.next_round and run.committed in run.agreed
        case _:
            return True


def _close(
    run: Run, rnd: Round, peers: tuple[PeerId, ...], reason: str, *, now: float
) -> list[Effect]:
    if rnd.phase is Phase.COLLECT:
        run.note_wait(rounds.middle_wait_s(rnd))
    is_new = rounds.close(rnd, _roster(run, rnd, peers), now=now)
    _count_anew(run, rnd, now=now)
    missing = tuple(sorted(rnd.waited - set(peers) - present(run, rnd.id).resting))
    closed = events.RoundClosed(round=rnd.id, roster=peers, missing=missing, reason=reason)
    return [Report(closed), *(announced(run, rnd) if is_new else [])]


def _count_anew(run: Run, rnd: Round, *, now: float) -> None:
    """Find out which claims count, after a change of the round's roster.

    Rounds after it collect again: their leases and weights depend on that roster.
    """
    for other in run.open_rounds.values():
        if other.id > rnd.id and other.phase is Phase.REDUCE:
            rounds.reopen(other)
        if other.id >= rnd.id:
            for peer in {**other.claims, **other.said}:
                count_claim(run, other, peer, now=now)


def count_claim(run: Run, rnd: Round, peer: PeerId, *, now: float) -> None:
    """Let the newest claim of a peer outside the roster count, if it brings work to the round.

    It brings none if the rosters of the rounds before have all of it. As long as a peer with a new
    connection has said nothing, what it claimed before counts: all of that may be at the reducers.
    """
    if peer in rnd.in_roster:
        return
    newest = rnd.said.get(peer) or rnd.claims.get(peer)
    brings_work = newest is not None and bool(leases_of(run, rnd.id, peer, newest))
    rounds.count_claim(rnd, peer, newest if brings_work else None, now=now)


def _roster(run: Run, rnd: Round, peers: tuple[PeerId, ...]) -> tuple[Share, ...]:
    return rounds.roster_of(
        rnd,
        peers,
        num_tokens={peer: num_tokens(run, rnd, peer) for peer in peers},
        fresh_tokens={peer: run.fresh_tokens(peer, rnd.id) for peer in peers},
        policy=run.config.sync,
    )


def _replace(
    run: Run, rnd: Round, lost: frozenset[PeerId], reason: str, *, now: float
) -> list[Effect]:
    """Give the slices of these reducers to others; to nobody, if there is none for now."""
    no_good = {peer for peer in lost if run.membership.is_connected(peer)}
    let_sit_out(run, no_good - rnd.excluded)
    rnd.excluded |= no_good
    assignment = replaced(run, rnd, lost)
    if assignment == rnd.assignment:
        return []
    places = rounds.reassign(rnd, assignment, now=now)
    return [plan_report(rnd, reason), *moved(run, rnd, places)]


def _commit(run: Run, rnd: Round, *, now: float) -> list[Effect]:
    entries = tuple(_roster_entry(run, rnd, share) for share in rnd.roster)
    updates = tuple(
        records.SliceUpdate(digest=rnd.reduced[place].digest, num_bytes=num_bytes)
        for place, num_bytes in zip(
            rnd.tree.places(rnd.tree.root),
            run.slice_bytes[run.fragment_of(rnd.id)],
            strict=True,
        )
    )
    record = records.Committed(
        round=rnd.id,
        fragment=run.fragment_of(rnd.id),
        codec=run.config.sync.codec,
        update_codec=run.config.sync.update_codec,
        roster=entries,
        updates=updates,
        partials=rounds.partial_sums(rnd),
        widths=rnd.widths if rnd.tree.root else (),
    )
    run.note_committed(record)
    exchange_s = rounds.exchange_s(rnd, now=now)
    run.note_exchange(exchange_s)
    before, run.committed = run.committed, rnd.id
    del run.open_rounds[rnd.id]
    for reducer in set(rnd.assignment):
        run.sitting_out.pop(reducer, None)
    tokens = sum(entry.num_tokens for entry in entries)
    report = events.RoundCommitted(
        round=rnd.id,
        roster=tuple(entry.peer for entry in entries),
        num_tokens=tokens,
        mean_loss=sum(entry.mean_loss * entry.num_tokens for entry in entries) / tokens,
        update_bytes=sum(update.num_bytes for update in updates),
        seconds=now - rnd.opened_at,
        exchange_s=exchange_s,
    )
    effects: list[Effect] = [Append((record,))]
    effects += [SendCommits(m.peer, before, rnd.id) for m in run.membership.connected()]
    return [*effects, Report(report)]


def _roster_entry(run: Run, rnd: Round, share: Share) -> records.RosterEntry:
    claim, config = rnd.claims[share.peer], run.config
    tokens_per_step = config.inner.batch_sequences * config.data.sequence_length
    return records.RosterEntry(
        peer=share.peer,
        share=share.share,
        num_tokens=share.num_tokens,
        num_steps=share.num_tokens // tokens_per_step,
        mean_loss=claim.mean_loss,
        leases=leases_of(run, rnd.id, share.peer, claim),
        contribution=records.contribution_digest(claim.digests),
        region=rnd.group_of(share.peer),
    )
