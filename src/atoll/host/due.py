"""What is due in a run, and doing it: agree, free leases, open, close, reduce, commit.

Each function changes the run and returns the effects of that; `advance` does all that is due now.
"""

from collections import Counter

from atoll import events
from atoll.data import leases
from atoll.exchange import plan
from atoll.host import rounds
from atoll.host.decision import Close, Commit, Expect, Reopen, Replace
from atoll.host.effects import Append, Effect, Report, Send, SendCommits
from atoll.host.rounds import NOBODY, Round
from atoll.host.state import (
    Run,
    closed_message,
    is_ready,
    num_samples,
    num_tokens,
    plan_for,
    plan_report,
    present,
    reduce_job,
    reducers,
    samples_of_round,
    shares_of_work,
)
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.net import records, wire


def advance(run: Run, *, now: float) -> list[Effect]:
    """Do all that is due: agree on a state, free leases, open, close, reduce, commit."""
    effects = _agree(run)
    effects += _free_departed(run)
    effects += _open(run, now=now)
    for rnd in list(run.open_rounds.values()):
        while rnd.id in run.open_rounds and (due := _act(run, rnd, now=now)):
            effects += due
    return effects


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


def _free_departed(run: Run) -> list[Effect]:
    """Put the leases of those who left or died back, unless an open round may still commit them."""
    freed: list[records.Record] = []
    for peer in sorted(run.departed):
        if any(_may_commit(rnd, peer) for rnd in run.open_rounds.values()):
            continue
        run.departed.discard(peer)
        for rnd in run.open_rounds.values():
            rounds.forget_claim(rnd, peer)
        ids = tuple(lease.id for lease in leases.held_by(run.book, peer))
        if ids or any(run.fresh.get(peer, ())):
            run.book = leases.release(run.book, ids)
            run.fresh.pop(peer, None)
            freed.append(records.Released(peer=peer, leases=ids, reason="its holder is gone"))
    return [Append(tuple(freed))] if freed else []


def _may_commit(rnd: Round, peer: PeerId) -> bool:
    return peer in rnd.completed_at or any(share.peer == peer for share in rnd.roster)


def _open(run: Run, *, now: float) -> list[Effect]:
    """Open the next round once those who may be ready in a moment are, or that moment is over."""
    policy = run.config.sync
    ready = [m.peer for m in run.membership.connected() if is_ready(run, m.peer)]
    round_id = run.next_to_open
    if run.open_rounds or round_id > policy.rounds or len(ready) < policy.min_peers:
        run.ready_at = None
        return []
    if run.ready_at is None:
        run.ready_at = now
    soon = {m.peer for m in run.membership.connected() if m.trains and m.round >= run.committed - 1}
    if now < run.started_at + policy.reconnect_s:  # after a restart all have to find us again
        soon |= {peer for peer, held in run.book.held.items() if held and peer in run.membership}
    if not soon.issubset(ready) and now < run.ready_at + policy.grace_floor_s:
        return []
    chosen = reducers(run)
    if not chosen:
        return []
    run.ready_at = None
    num_slices = len(run.slice_bytes[run.fragment_of(round_id)])
    assignment = plan.assign_by_shares(num_slices, shares_of_work(run, round_id, chosen))
    # No version is used twice, also not by the host process that goes on with a round.
    run.num_planned += 1
    version = run.num_planned << 12
    rnd = run.open_rounds[round_id] = Round(
        id=round_id,
        opened_at=now,
        waited=set(ready),
        assignment=assignment,
        version=version,
        roster_version=version,
        usual_s=run.usual_exchange_s,
        usual_wait_s=run.usual_wait_s,
    )
    planned = records.Planned(round=round_id, peers=tuple(ready))
    effects: list[Effect] = [Append((planned,)), plan_report(rnd, "a new round")]
    for peer in sorted(present(run).able):
        effects += invite(run, rnd, peer)
    return effects


def invite(run: Run, rnd: Round, peer: PeerId) -> list[Effect]:
    """Send the peer the plan, and leases for all the inner steps of a round if it trains."""
    effects: list[Effect] = []
    member = run.membership.get(peer)
    if member is not None and member.trains:
        rnd.invited.add(peer)
        effects += _lease(run, rnd, peer)
    effects.append(Send(peer, plan_for(run, rnd, peer)))
    if rnd.announced:
        effects.append(Send(peer, closed_message(rnd)))
    return effects


def _lease(run: Run, rnd: Round, peer: PeerId) -> list[Effect]:
    """Give the peer what it lacks of the work for this round; overlapped, and for the next one.

    A grant fills up the work of one round, so a contribution can end where a lease does.
    """
    sync, per_round = run.config.sync, rnd.work.setdefault(peer, samples_of_round(run, peer))
    num_rounds = min(2, sync.rounds - rnd.id + 1) if sync.mode == "overlap" else 1
    lacking = num_rounds * per_round - num_samples(run, peer)
    granted_now = []
    while lacking > 0:
        size = (lacking - 1) % per_round + 1
        run.book, granted = leases.grant(run.book, peer, num_samples=size)
        granted_now.append(records.Leased(peer=peer, leases=granted))
        lacking -= size
    return [Append(tuple(granted_now))] if granted_now else []


def relieve(run: Run, *, now: float) -> list[Effect]:
    """Give the slices of reducers that are too slow to others. Only passing time makes them so."""
    effects: list[Effect] = []
    for rnd in run.open_rounds.values():
        due = rounds.relieve(rnd, now=now, present=present(run), policy=run.config.sync)
        if isinstance(due, Replace):
            effects += _replace(run, rnd, due.reducers, due.reason, now=now)
    return effects


def _act(run: Run, rnd: Round, *, now: float) -> list[Effect]:
    """Carry out what `rounds.decide` finds due; nothing due, nothing done."""
    decision = rounds.decide(rnd, now=now, present=present(run), policy=run.config.sync)
    match decision:
        case Expect(peers=peers):
            rounds.announce(rnd, _roster(run, rnd, peers), now=now)
            return _announced(run, rnd)
        case Close(peers=peers, reason=reason):
            return _close(run, rnd, peers, reason, now=now)
        case Replace(reducers=lost, reason=reason):
            return _replace(run, rnd, lost, reason, now=now)
        case Reopen():
            rounds.reopen(rnd)
            return [plan_report(rnd, decision.reason)]
        case Commit():
            return _commit(run, rnd, now=now)
        case _:
            return []


def _close(
    run: Run, rnd: Round, peers: tuple[PeerId, ...], reason: str, *, now: float
) -> list[Effect]:
    if rnd.phase is rounds.Phase.COLLECT:
        run.note_wait(rounds.middle_wait_s(rnd))
    is_new = rounds.close(rnd, _roster(run, rnd, peers), now=now)
    missing = tuple(sorted(rnd.waited - set(peers)))
    closed = events.RoundClosed(round=rnd.id, roster=peers, missing=missing, reason=reason)
    return [Report(closed), *(_announced(run, rnd) if is_new else [])]


def _roster(run: Run, rnd: Round, peers: tuple[PeerId, ...]) -> tuple[wire.Share, ...]:
    return rounds.roster_of(
        rnd,
        peers,
        num_tokens={peer: num_tokens(run, peer, rnd.claims[peer]) for peer in peers},
        fresh_tokens={peer: run.fresh_tokens(peer, rnd.id) for peer in peers},
        policy=run.config.sync,
    )


def _announced(run: Run, rnd: Round) -> list[Effect]:
    """Let the updates of the announced roster be formed and fetched."""
    effects: list[Effect] = [Send(m.peer, closed_message(rnd)) for m in run.membership.connected()]
    return effects + [reduce_job(rnd, k) for k in range(len(rnd.assignment))]


def _replace(
    run: Run, rnd: Round, lost: frozenset[PeerId], reason: str, *, now: float
) -> list[Effect]:
    """Give the slices of these reducers to others; to nobody, if there is none for now."""
    rnd.excluded |= {peer for peer in lost if run.membership.is_connected(peer)}
    # Rather one that was no good before than none at all.
    chosen = reducers(run, without=lost | rnd.excluded) or reducers(run, without=lost) or [NOBODY]
    shares = shares_of_work(run, rnd.id, chosen)
    assignment = plan.reassign(rnd.assignment, lost=lost, reducers=chosen, shares=shares)
    if assignment == rnd.assignment:
        return []
    moved = rounds.reassign(rnd, assignment, now=now)
    effects: list[Effect] = [plan_report(rnd, reason)]
    effects += [Send(peer, plan_for(run, rnd, peer)) for peer in sorted(present(run).able)]
    if rnd.announced:
        effects += [reduce_job(rnd, k) for k in moved if assignment[k] != NOBODY]
    return effects


def _commit(run: Run, rnd: Round, *, now: float) -> list[Effect]:
    entries = tuple(_roster_entry(rnd, share) for share in rnd.roster)
    updates = tuple(
        records.SliceUpdate(digest=rnd.reduced[k].digest, num_bytes=num_bytes)
        for k, num_bytes in enumerate(run.slice_bytes[run.fragment_of(rnd.id)])
    )
    record = records.Committed(
        round=rnd.id,
        fragment=run.fragment_of(rnd.id),
        codec=run.config.sync.codec,
        update_codec=run.config.sync.update_codec,
        roster=entries,
        updates=updates,
    )
    run.note_committed(record)
    run.note_exchange(rounds.exchange_s(rnd, now=now))
    before, run.committed = run.committed, rnd.id
    del run.open_rounds[rnd.id]
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
    effects += [SendCommits(m.peer, before, rnd.id) for m in run.membership.connected()]
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
