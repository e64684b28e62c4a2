"""The life of one round, as the host decides it. No clock, socket or log in here.

    COLLECT  peers train and deliver their slices to the reducers
       |     expect: all are on their way, so their updates are formed as the slices come
       |     close: everyone waited for delivered, or the quorum did and the grace time is over
    REDUCE   the reducers form the updates of this roster, members put them on disk
       |     commit: all slices are reduced, and enough members hold them
    committed

What happens on the way is noted by `claim`, `deliver`, `reduce` and `hold`; `decide` says what is
due. A reducer that is lost is replaced at any point, and its slices are delivered again; a
contributor that is lost with a slice still missing is left out by closing again. A round is never
aborted: without contributors it stays open until some come.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from math import ceil, inf, isfinite, sqrt
from statistics import median
from types import MappingProxyType

from atoll.config import SyncConfig
from atoll.exchange import plan
from atoll.host.decision import (
    Close,
    Commit,
    Decision,
    Expect,
    Present,
    Reopen,
    Replace,
    Share,
    Wait,
)
from atoll.host.late import Arrivals, grace_s, late_reducers
from atoll.ids import Digest, PeerId, RoundId
from atoll.net import wire

Phase = Enum("Phase", "COLLECT REDUCE")
MIN_HOLDERS = 2  # on whose disks the updates are before the commit: one may die at any moment
NOBODY = PeerId("")  # reduces a slice while no member can


@dataclass(slots=True, kw_only=True)
class Round:
    """An open round: it waits for the contributors `waited`; all `invited` may come."""

    id: RoundId
    opened_at: float
    waited: set[PeerId]
    assignment: tuple[PeerId, ...]  # the reducer of each slice
    version: int  # of the plan; counts up
    roster_version: int
    phase: Phase = Phase.COLLECT
    invited: set[PeerId] = field(default_factory=set)
    work: dict[PeerId, int] = field(default_factory=dict)  # samples that each is to contribute
    claims: dict[PeerId, wire.Contribution] = field(default_factory=dict)
    delivered: dict[PeerId, dict[int, wire.Delivered]] = field(default_factory=dict)
    completed_at: dict[PeerId, float] = field(default_factory=dict)
    norms: dict[PeerId, float] = field(default_factory=dict)  # of contributions that were whole
    roster: tuple[Share, ...] = ()  # in REDUCE: it is fixed
    in_roster: Mapping[PeerId, Share] = field(default_factory=dict)  # the same, by peer
    announced: tuple[Share, ...] = ()  # to the members: the roster, or the expected one
    announced_at: float = 0.0
    reduced: dict[int, wire.Reduced] = field(default_factory=dict)
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
    moved_at: dict[int, float] = field(default_factory=dict)  # slices, to their present reducers
    # When whose contributions came to the reducer of a slice, and when members had its update.
    collected_at: dict[int, dict[PeerId, float]] = field(default_factory=dict)
    fetched_at: dict[int, dict[PeerId, float]] = field(default_factory=dict)


def claim(rnd: Round, peer: PeerId, contribution: wire.Contribution, *, now: float) -> None:
    """Note what the peer says that it delivers; after the close nothing changes any more."""
    in_roster = peer in rnd.in_roster
    whole = len(contribution.digests) == len(rnd.assignment) and isfinite(contribution.mean_loss)
    if peer in rnd.invited and whole and not in_roster:
        if peer in rnd.claims and rnd.claims[peer].digests != contribution.digests:
            forget_claim(rnd, peer)  # it trained again
        rnd.claims[peer] = contribution
        rnd.claimed_at.setdefault(peer, now)
        _note_completion(rnd, peer, now=now)


def deliver(rnd: Round, reducer: PeerId, message: wire.Delivered, *, now: float) -> None:
    """Note that a slice arrived; a reducer speaks only for the slices that are its own."""
    own = message.slice < len(rnd.assignment) and rnd.assignment[message.slice] == reducer
    sane = isfinite(message.squared_norm) and message.squared_norm >= 0
    contributor = message.contributor
    if not (own and sane and contributor in rnd.invited):
        return
    in_roster = contributor in rnd.in_roster
    if in_roster and rnd.claims[contributor].digests[message.slice] != message.digest:
        return  # it trained again; the roster has what it delivered first
    arrived = rnd.delivered.setdefault(contributor, {})
    if arrived.get(message.slice) != message and (in_roster or rnd.phase is Phase.COLLECT):
        rnd.progress_at = now
    rnd.began_at.setdefault(contributor, now)
    rnd.collected_at.setdefault(message.slice, {}).setdefault(contributor, now)
    arrived[message.slice] = message
    _note_completion(rnd, contributor, now=now)


def reduce(rnd: Round, reducer: PeerId, message: wire.Reduced, *, now: float) -> None:
    """Note that the update of a slice is there, for the newest roster."""
    own = message.slice < len(rnd.assignment) and rnd.assignment[message.slice] == reducer
    if own and message.roster_version == rnd.roster_version and rnd.announced:
        if rnd.reduced.get(message.slice) != message:
            rnd.progress_at = now
        rnd.reduced[message.slice] = message


def hold(rnd: Round, peer: PeerId, message: wire.Held, *, now: float) -> None:
    """Note that the peer has the updates of all slices on disk, for the newest roster."""
    whole = len(message.digests) == len(rnd.assignment)
    if whole and message.roster_version == rnd.roster_version and rnd.announced:
        if rnd.held.get(peer) != message.digests:
            rnd.progress_at = now
        rnd.held[peer] = message.digests
        _note_fetched(rnd, peer, range(len(message.digests)), now=now)


def fetch(rnd: Round, peer: PeerId, message: wire.Fetched, *, now: float) -> None:
    """Note that the peer has these updates, while it waits for others, for the newest roster."""
    known = message.start < message.stop <= len(rnd.assignment)
    if known and message.roster_version == rnd.roster_version and rnd.announced:
        _note_fetched(rnd, peer, range(message.start, message.stop), now=now)


def _note_fetched(rnd: Round, peer: PeerId, slices: range, *, now: float) -> None:
    for k in slices:
        rnd.fetched_at.setdefault(k, {}).setdefault(peer, now)


def complain(rnd: Round, peer: PeerId, reducer: PeerId) -> None:
    """Note that the peer cannot reach the reducer."""
    if reducer in rnd.assignment:
        rnd.complaints.setdefault(reducer, set()).add(peer)


def forget_claim(rnd: Round, peer: PeerId) -> None:
    """Forget what a peer outside the roster said that it delivers, and what was expected of it."""
    rnd.claims.pop(peer, None)
    rnd.completed_at.pop(peer, None)
    if any(share.peer == peer for share in rnd.announced):
        rnd.announced = ()


def announce(rnd: Round, roster: tuple[Share, ...], *, now: float) -> None:
    """Let updates be formed for this roster. What was reduced for an earlier one is void."""
    rnd.announced = roster
    rnd.announced_at = now
    rnd.roster_version += 1
    rnd.reduced = {}
    rnd.held = {}
    rnd.fetched_at = {}


def close(rnd: Round, roster: tuple[Share, ...], *, now: float) -> bool:
    """Fix the roster. Return whether it is another one than was expected."""
    rnd.phase = Phase.REDUCE
    rnd.roster = roster
    rnd.in_roster = {share.peer: share for share in roster}
    rnd.closed_at = rnd.progress_at = now
    is_other = roster != rnd.announced
    if is_other:
        announce(rnd, roster, now=now)
    # Who was quick before the close shows nobody else to be slow: all waited for the last slice.
    rnd.fetched_at = {k: dict.fromkeys(times, now) for k, times in rnd.fetched_at.items()}
    return is_other


def reopen(rnd: Round) -> None:
    """Go back to collecting: nobody of the roster could be kept."""
    rnd.phase = Phase.COLLECT
    rnd.roster = rnd.announced = ()
    rnd.in_roster = {}
    rnd.reduced = {}
    rnd.held = {}
    rnd.fetched_at = {}


def reassign(rnd: Round, assignment: tuple[PeerId, ...], *, now: float) -> tuple[int, ...]:
    """Take over the new reducers, and return the slices that moved: all about them starts again."""
    moved = tuple(
        k for k, (old, new) in enumerate(zip(rnd.assignment, assignment, strict=True)) if old != new
    )
    for k in moved:
        rnd.moved_at[k] = now
        rnd.reduced.pop(k, None)
        rnd.collected_at.pop(k, None)
        for slices in rnd.delivered.values():
            slices.pop(k, None)
    rnd.completed_at = {p: at for p, at in rnd.completed_at.items() if is_complete(rnd, p)}
    rnd.assignment = assignment
    rnd.version += 1
    rnd.progress_at = now
    return moved


def exchange_s(rnd: Round, *, now: float) -> float:
    """Return how long it took from the last claim of the roster until now, the commit."""
    return now - max(rnd.claimed_at[share.peer] for share in rnd.roster)


def middle_wait_s(rnd: Round) -> float:
    """Return how long the middle contributor took, of those that have delivered by now."""
    return median(rnd.completed_at.values()) - rnd.opened_at


def is_complete(rnd: Round, peer: PeerId) -> bool:
    """Return whether every slice that the peer claims is at its reducer."""
    contribution = rnd.claims.get(peer)
    if contribution is None:
        return False
    arrived = rnd.delivered.get(peer, {})
    if len(arrived) < len(contribution.digests):
        return False
    return all(
        k in arrived and arrived[k].digest == digest
        for k, digest in enumerate(contribution.digests)
    )


def roster_of(
    rnd: Round,
    peers: tuple[PeerId, ...],
    *,
    num_tokens: Mapping[PeerId, int],
    fresh_tokens: Mapping[PeerId, int] = MappingProxyType({}),
    policy: SyncConfig,
) -> tuple[Share, ...]:
    """Return the roster of these contributors; weights come from leases and measured norms.

    Before the close norms are not known yet. Then none counts as longer than the others.
    `num_tokens` are those of the leases that each names; `fresh_tokens` those of its earlier leases
    that this fragment does not contain yet.
    """
    norms = {peer: rnd.norms[peer] for peer in peers if peer in rnd.completed_at}
    if len(norms) < len(peers):
        norms = dict.fromkeys(peers, 1.0)
    weights = {peer: num_tokens[peer] + fresh_tokens.get(peer, 0) for peer in peers}
    shares = plan.shares(weights, norms, clip_to_median=policy.clip_to_median)
    return tuple(
        Share(peer=peer, share=share, num_tokens=num_tokens[peer]) for peer, share in shares.items()
    )


def decide(rnd: Round, *, now: float, present: Present, policy: SyncConfig) -> Decision:
    """Return what is due."""
    lost = frozenset(rnd.assignment) - present.connected
    if lost:
        return Replace(lost, "a reducer is gone")
    due: Decision
    if rnd.phase is Phase.COLLECT:
        due = _decide_close(rnd, now=now, present=present, policy=policy)
        if isinstance(due, Wait) and (expected := _expected(rnd, present)):
            due = Expect(expected)
        unfinished = set(rnd.claims) & present.connected - set(rnd.completed_at)
    else:
        due = _decide_commit(rnd, now=now, present=present, policy=policy)
        unfinished = _short(rnd) or set(present.able) - _holders(rnd)
    if not isinstance(due, Wait):
        return due
    if shunned := _shunned(rnd, unfinished, present):
        return Replace(shunned, "a reducer cannot be reached by those who still need it")
    return due


def relieve(rnd: Round, *, now: float, present: Present, policy: SyncConfig) -> Replace | Wait:
    """Return which reducers are too slow for this round, if there are others to take.

    Only time makes them so: it is enough to ask with each tick, when nothing else is due.
    """
    usual_s = rnd.usual_s
    if rnd.phase is Phase.COLLECT:
        quorum = _quorum(rnd, _waited(rnd, present), present=present, policy=policy)
        arrivals = _collected(rnd, quorum)
    elif _short(rnd):
        return Wait("contributors deliver again what was lost")
    else:
        arrivals = _fetched(rnd, present)
        if _is_served(rnd):
            usual_s = None  # it may well be a line that receives which is slow
    late = late_reducers(
        rnd.assignment,
        arrivals,
        opened_at=rnd.opened_at,
        usual_s=usual_s,
        now=now,
        policy=policy,
    )
    if late and present.can_reduce - rnd.excluded - late:
        return Replace(late, "others would be done sooner than a slow reducer")
    return Wait("no reducer is slower than the others can make good")


def _decide_close(rnd: Round, *, now: float, present: Present, policy: SyncConfig) -> Close | Wait:
    complete = rnd.completed_at.keys()
    waited = _waited(rnd, present)
    missing = waited - complete
    if complete and not missing:
        return Close(tuple(sorted(complete)), "all delivered")
    quorum = _quorum(rnd, waited, present=present, policy=policy)
    if len(complete) < quorum:
        return Wait(f"{len(complete)} delivered, {quorum} are needed")
    quorum_at = sorted(rnd.completed_at.values())[quorum - 1]
    # The others get a share of the time that this very round took so far, or usual ones did: a
    # quorum that brings carried work is there at once. Whoever has lost its connection, the least.
    took_s = max(quorum_at - rnd.opened_at, rnd.usual_wait_s)
    if not missing & present.connected:
        took_s = 0.0
    if now >= quorum_at + grace_s(took_s, policy):
        return Close(tuple(sorted(complete)), f"the grace time is over, {len(missing)} missing")
    return Wait(f"waiting for {len(missing)} of {len(waited)}")


def _expected(rnd: Round, present: Present) -> tuple[PeerId, ...]:
    """Return who will be in the roster if all goes well, once they are on their way; not twice."""
    waited = _waited(rnd, present)
    if not waited <= rnd.claims.keys() or waited == {share.peer for share in rnd.announced}:
        return ()
    return tuple(sorted(waited))


def _waited(rnd: Round, present: Present) -> set[PeerId]:
    """Return whose contributions the round is there for."""
    idle = present.resting - rnd.claims.keys()
    here = present.connected - idle
    return rnd.waited & (here | present.away) or rnd.invited & here


def _quorum(rnd: Round, waited: set[PeerId], *, present: Present, policy: SyncConfig) -> int:
    # Whoever has lost its connection has to train anew, or is only just back: not of the quorum.
    num_away = len(waited - present.connected - rnd.completed_at.keys())
    return quorum_of(len(waited) - num_away, policy)


def quorum_of(num_peers: int, policy: SyncConfig) -> int:
    """Return how many of these have to deliver before the others have only the grace time left."""
    return max(1, ceil(policy.quorum * num_peers))


def _decide_commit(rnd: Round, *, now: float, present: Present, policy: SyncConfig) -> Decision:
    # Nothing new for so long, measured by how long this round took: somebody is stuck.
    stalled_s = now - rnd.progress_at
    is_stuck = stalled_s > policy.silent_s + grace_s(rnd.closed_at - rnd.opened_at, policy)
    holders = _holders(rnd)
    if len(holders) >= max(1, min(MIN_HOLDERS, len(present.able))):
        kept_here = present.keeper in holders or present.keeper not in present.able
        if kept_here or is_stuck:
            return Commit()
    short = _short(rnd)
    is_over = is_stuck or _is_over_for_the_short(rnd, short, now=now, policy=policy)
    given_up = short if is_over else short - present.connected
    if given_up and (is_over or stalled_s > policy.grace_floor_s):
        kept = tuple(s.peer for s in rnd.roster if s.peer not in given_up)
        if not kept:
            return Reopen("every contributor was lost before its slices were reduced")
        return Close(kept, f"{len(given_up)} contributors were lost before the reduction")
    if is_stuck and not short:
        suspects = _suspects(rnd, present)
        if suspects and present.can_reduce - rnd.excluded - suspects:
            return Replace(suspects, "a reducer does not deliver what it should")
    return Wait("waiting for updates to be formed and put on disk")


def _short(rnd: Round) -> set[PeerId]:
    """Return the contributors of the roster with a slice missing at its reducer."""
    return set(rnd.in_roster) - set(rnd.completed_at)


def _holders(rnd: Round) -> set[PeerId]:
    """Return who has all the updates on disk that the reducers reported."""
    if len(rnd.reduced) < len(rnd.assignment):
        return set()
    digests = tuple(rnd.reduced[k].digest for k in range(len(rnd.assignment)))
    return {peer for peer, held in rnd.held.items() if held == digests}


def _is_over_for_the_short(
    rnd: Round, short: set[PeerId], *, now: float, policy: SyncConfig
) -> bool:
    """Return whether the others of the roster have long delivered again what was lost."""
    whole_at = sorted(rnd.completed_at[s.peer] for s in rnd.roster if s.peer not in short)
    quorum = ceil(policy.quorum * len(rnd.roster))
    if not short or len(whole_at) < quorum:
        return False
    return now >= whole_at[quorum - 1] + grace_s(whole_at[quorum - 1] - rnd.opened_at, policy)


def _suspects(rnd: Round, present: Present) -> frozenset[PeerId]:
    """Return the reducers of slices that were not formed, or not served as they were reported.

    Without any, those whose updates have not come to the disks that a commit needs.
    """
    suspects = {
        reducer
        for k, reducer in enumerate(rnd.assignment)
        if k not in rnd.reduced
        or any(held[k] != rnd.reduced[k].digest for held in rnd.held.values())
    }
    arrivals = zip(rnd.assignment, _fetched(rnd, present), strict=True)
    return frozenset(suspects or {reducer for reducer, one in arrivals if one.done_at is None})


def _collected(rnd: Round, quorum: int) -> list[Arrivals]:
    """Return how far the slices are on their way to the reducers, once a quorum has begun."""
    begun_at = [
        sorted(times.values())[quorum - 1]
        for times in (rnd.began_at, rnd.claimed_at)
        if len(times) >= quorum
    ]
    began_at = min(begun_at, default=inf)
    collected = [rnd.collected_at.get(k, {}) for k in range(len(rnd.assignment))]
    needed = _needed(collected, enough=quorum)
    result = []
    for k, of_slice in enumerate(collected):
        times, since = list(of_slice.values()), rnd.moved_at.get(k, began_at)
        result.append(
            Arrivals(
                since=since,
                needed=needed,
                arrived=len(times),
                last_at=times[-1] if times else since,
                done_at=times[needed - 1] if len(times) >= needed else None,
            )
        )
    return result


def _is_served(rnd: Round) -> bool:
    """Return whether a member has updates that somebody else has formed."""
    return any(peer != rnd.assignment[k] for k, times in rnd.fetched_at.items() for peer in times)


def _fetched(rnd: Round, present: Present) -> list[Arrivals]:
    """Return how far the updates are on their way to those whose disks a commit needs."""
    fetched = [rnd.fetched_at.get(k, {}) for k in range(len(rnd.assignment))]
    needed = _needed(fetched, enough=max(1, min(MIN_HOLDERS, len(present.able))))
    result = []
    for k, times in enumerate(fetched):
        since = max(rnd.announced_at, rnd.moved_at.get(k, 0.0))
        first = list(islice(times.values(), needed))
        kept_at = times.get(present.keeper) if present.keeper in present.able else since
        result.append(
            Arrivals(
                since=since,
                needed=needed,
                arrived=len(first) if kept_at is not None else min(len(first), needed - 1),
                last_at=max(first, default=since),
                done_at=None if kept_at is None or len(first) < needed else max(*first, kept_at),
            )
        )
    return result


def _needed(members: Sequence[Collection[PeerId]], *, enough: int) -> int:
    """Return with how many members each slice has to be through, before its reducer is done.

    `members` are those with which each slice is. The round waits for `enough` that are through with
    all slices. If every slice has as many, but of different members, each of these lacks something
    of another reducer: then the reducers that are behind the others keep the round waiting.
    """
    fewest = min(map(len, members))
    through = set(members[0]).intersection(*members[1:])
    return enough if fewest < enough or len(through) >= enough else fewest + 1


def _shunned(rnd: Round, unfinished: set[PeerId], present: Present) -> frozenset[PeerId]:
    """Return the reducers that all the unfinished complain about, if there are others to take."""
    shunned = frozenset(
        reducer
        for reducer, complainers in rnd.complaints.items()
        if unfinished and unfinished <= complainers and reducer in rnd.assignment
    )
    return shunned if present.can_reduce - rnd.excluded - shunned else frozenset()


def _note_completion(rnd: Round, peer: PeerId, *, now: float) -> None:
    if not is_complete(rnd, peer):
        rnd.completed_at.pop(peer, None)
    elif peer not in rnd.completed_at:
        rnd.completed_at[peer] = now
        rnd.norms[peer] = sqrt(sum(m.squared_norm for m in rnd.delivered[peer].values()))
