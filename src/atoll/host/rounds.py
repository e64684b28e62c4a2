"""The life of one round, as the host decides it. No clock, socket or log in here.

    COLLECT  peers train and deliver their slices to the reducers
       |     expect: all are on their way, so their updates are formed as the slices come
       |     close: everyone waited for delivered, or the quorum did and the grace time is over
    REDUCE   the reducers form the updates of this roster, members put them on disk
       |     commit: all slices are reduced, and enough members hold them
    committed

What happens on the way is noted by `claim`, `deliver`, `reduce` and `hold`; `decide` says what is
due. A reducer that is lost is replaced at any point, and its slices are delivered again; a
contributor that is lost with a slice still missing, or trained again and so brings another one, is
left out by closing again. A round is never aborted: without contributors it stays open until some
come.
"""

from collections.abc import Mapping
from math import ceil, isfinite, sqrt
from statistics import median
from types import MappingProxyType

from atoll.config import SyncConfig
from atoll.exchange import plan
from atoll.exchange.tree import Tree
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
from atoll.host.late import grace_s
from atoll.host.numbers import is_loss
from atoll.host.open_round import (
    Phase,
    Round,
    are_enough,
    holders_of,
    is_complete,
    is_lost,
    is_under_way,
    quorum_in,
    short_of_slices,
    waited_for,
)
from atoll.host.relief import shunned_reducers, suspects
from atoll.ids import Digest, PeerId
from atoll.net import wire

# Of each slice of a contributor: in the roster, claimed since, and on its way before it is claimed.
MAX_VERSIONS = 3


def claim(rnd: Round, peer: PeerId, contribution: wire.Contribution, *, now: float) -> None:
    """Note what the peer says that it delivers; whether that counts, `count_claim` is told."""
    whole = len(contribution.digests) == rnd.num_slices and is_loss(contribution.mean_loss)
    if peer in rnd.invited and whole:
        rnd.said[peer] = contribution
        rnd.claimed_at.setdefault(peer, now)


def count_claim(rnd: Round, peer: PeerId, claim: wire.Contribution | None, *, now: float) -> None:
    """Let this claim of a peer outside the roster count, and no other; None: the peer has none."""
    counted = rnd.claims.pop(peer, None)
    if counted is not None and (claim is None or claim.digests != counted.digests):
        rnd.completed_at.pop(peer, None)
        if any(share.peer == peer for share in rnd.announced):
            rnd.announced = ()  # it was expected
    if claim is not None:
        rnd.claims[peer] = claim
        _note_completion(rnd, peer, now=now)


def deliver(rnd: Round, reducer: PeerId, message: wire.Delivered, *, now: float) -> None:
    """Note that a slice arrived; a reducer speaks only for the places that are its own."""
    contributor = message.contributor
    place = rnd.tree.place(rnd.group_of(contributor), message.slice)
    own = message.slice < rnd.num_slices and rnd.assignment[place] == reducer
    sane = isfinite(message.squared_norm) and message.squared_norm >= 0
    if not (own and sane and contributor in rnd.invited):
        return
    arrived = rnd.delivered.setdefault(contributor, {})
    slice_ = message.slice, message.digest
    if slice_ not in arrived and _is_needed(rnd, contributor, slice_):
        rnd.progress_at = now
    rnd.began_at.setdefault(contributor, now)
    rnd.collected_at.setdefault(place, {}).setdefault(contributor, now)
    arrived[slice_] = message.squared_norm
    _forget_versions(rnd, contributor)
    _note_completion(rnd, contributor, now=now)


def _forget_versions(rnd: Round, contributor: PeerId) -> None:
    """Keep what is claimed, and of the rest the newest: a reducer may say whatever it likes."""
    arrived = rnd.delivered[contributor]
    if len(arrived) > MAX_VERSIONS * rnd.num_slices:
        claimed = [by.get(contributor) for by in (rnd.claims, rnd.said)]
        kept = {slice_ for one in claimed if one for slice_ in enumerate(one.digests)}
        del arrived[next(slice_ for slice_ in arrived if slice_ not in kept)]


def _is_needed(rnd: Round, contributor: PeerId, slice_: tuple[int, Digest]) -> bool:
    """Return whether a round that is closed waits for this slice: it was lost."""
    k, digest = slice_
    return contributor in rnd.in_roster and rnd.claims[contributor].digests[k] == digest


def reduce(rnd: Round, reducer: PeerId, message: wire.Reduced, *, now: float) -> None:
    """Note that an update, or a partial sum, is there, for the newest roster."""
    tree = rnd.tree
    group = tree.root if message.group is None else message.group
    if group >= tree.num_groups or message.slice >= tree.num_slices:
        return
    place = tree.place(group, message.slice)
    own = rnd.assignment[place] == reducer and len(message.parts) == len(rnd.below(group))
    if own and message.roster_version == rnd.roster_version and rnd.announced:
        if rnd.reduced.get(place) != message:
            rnd.progress_at = now
        rnd.reduced[place] = message
        rnd.parts[place] = message.parts
        rnd.reduced_at.setdefault(place, now)


def hold(rnd: Round, peer: PeerId, message: wire.Held, *, now: float) -> None:
    """Note that the peer has the updates of all slices on disk, for the newest roster."""
    whole = len(message.digests) == rnd.num_slices
    if whole and message.roster_version == rnd.roster_version and rnd.announced:
        if rnd.held.get(peer) != message.digests:
            rnd.progress_at = now
        rnd.held[peer] = message.digests
        _note_fetched(rnd, peer, range(len(message.digests)), now=now)


def fetch(rnd: Round, peer: PeerId, message: wire.Fetched, *, now: float) -> None:
    """Note that the peer has these updates, while it waits for others, for the newest roster."""
    known = message.start < message.stop <= rnd.num_slices
    if known and message.roster_version == rnd.roster_version and rnd.announced:
        _note_fetched(rnd, peer, range(message.start, message.stop), now=now)


def _note_fetched(rnd: Round, peer: PeerId, slices: range, *, now: float) -> None:
    for k in slices:
        rnd.fetched_at.setdefault(k, {}).setdefault(peer, now)


def complain(rnd: Round, peer: PeerId, reducer: PeerId) -> None:
    """Note that the peer cannot reach the reducer."""
    if reducer in rnd.assignment:
        rnd.complaints.setdefault(reducer, set()).add(peer)


def forget_said(rnd: Round, peer: PeerId) -> None:
    """Forget what the peer said that it delivers: if it still does, it will say so again."""
    rnd.said.pop(peer, None)


def announce(rnd: Round, roster: tuple[Share, ...], *, now: float) -> None:
    """Let updates be formed for this roster. What was reduced for an earlier one is void."""
    rnd.announced = roster
    rnd.populated = rnd.groups_with(roster)
    rnd.announced_at = now
    rnd.roster_version += 1
    _void_updates(rnd)


def _void_updates(rnd: Round) -> None:
    rnd.reduced = {}
    rnd.reduced_at = {}
    rnd.parts = {}
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
    _void_updates(rnd)


def divide_anew(
    rnd: Round,
    tree: Tree,
    regions: Mapping[PeerId, int],
    assignment: tuple[PeerId, ...],
) -> None:
    """Take over other regions, and their reducers: all deliver again, or say that it is there."""
    members = [*rnd.regions, *rnd.invited]
    reopen(rnd)
    rnd.divide(tree, dict(regions), assignment)
    for peer in members:  # also who is away, and may come back
        if peer not in regions:
            rnd.join_region(peer)
    rnd.delivered = {}
    rnd.completed_at = {}
    rnd.collected_at = {}
    rnd.moved_at = {}
    rnd.version += 1


def reassign(rnd: Round, assignment: tuple[PeerId, ...], *, now: float) -> tuple[int, ...]:
    """Take over the new reducers, and return the places that moved: all about them starts again.

    What others have made of a partial sum is as good as ever: its digest is among their parts.
    """
    moved = tuple(
        k for k, (old, new) in enumerate(zip(rnd.assignment, assignment, strict=True)) if old != new
    )
    for place in moved:
        rnd.moved_at[place] = now
        rnd.reduced.pop(place, None)
        rnd.reduced_at.pop(place, None)
        rnd.collected_at.pop(place, None)
    gone = {rnd.tree.group_and_slice(place) for place in moved}
    for peer, slices in rnd.delivered.items():
        group = rnd.group_of(peer)
        for slice_ in [slice_ for slice_ in slices if (group, slice_[0]) in gone]:
            del slices[slice_]
    rnd.completed_at = {p: at for p, at in rnd.completed_at.items() if is_complete(rnd, p)}
    rnd.assignment = assignment
    rnd.version += 1
    rnd.progress_at = now
    return moved


def partial_sums(rnd: Round) -> tuple[tuple[Digest, ...], ...]:
    """Return the digests of the partial sums that the updates are made of, group by group.

    Each group has one for each slice, or none at all if nobody of the roster is below it.
    """
    sums: dict[int, dict[int, Digest]] = {group: {} for group in range(rnd.tree.root)}
    for place, parts in rnd.parts.items():
        group, k = rnd.tree.group_and_slice(place)
        for child, digest in zip(rnd.below(group), parts, strict=True):
            sums[child][k] = digest
    return tuple(tuple(of_slices[k] for k in sorted(of_slices)) for of_slices in sums.values())


def exchange_s(rnd: Round, *, now: float) -> float:
    """Return how long it took from the last claim of the roster until now, the commit."""
    return now - max(rnd.claimed_at[share.peer] for share in rnd.roster)


def middle_wait_s(rnd: Round) -> float:
    """Return how long the middle contributor took, of those that have delivered by now."""
    return median(rnd.completed_at.values()) - rnd.opened_at


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
        unfinished = set(rnd.said) & present.connected - set(rnd.completed_at)
    else:
        due = _decide_commit(rnd, now=now, present=present, policy=policy)
        unfinished = short_of_slices(rnd) or set(present.able) - holders_of(rnd)
    if not isinstance(due, Wait):
        return due
    if shunned := shunned_reducers(rnd, unfinished, present):
        return Replace(shunned, "a reducer cannot be reached by those who still need it")
    return due


def _decide_close(rnd: Round, *, now: float, present: Present, policy: SyncConfig) -> Close | Wait:
    complete = rnd.completed_at.keys()
    waited = waited_for(rnd, present)
    missing = waited - complete
    if complete and not missing:
        return Close(tuple(sorted(complete)), "all delivered")
    quorum = quorum_in(rnd, waited, present=present, policy=policy)
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
    waited = waited_for(rnd, present)
    if waited == {share.peer for share in rnd.announced}:
        return ()
    return tuple(sorted(waited)) if all(is_under_way(rnd, peer) for peer in waited) else ()


def _decide_commit(rnd: Round, *, now: float, present: Present, policy: SyncConfig) -> Decision:
    # Nothing new for so long, measured by how long this round took: somebody is stuck.
    stalled_s = now - rnd.progress_at
    is_stuck = stalled_s > policy.silent_s + grace_s(rnd.closed_at - rnd.opened_at, policy)
    holders = holders_of(rnd)
    if are_enough(holders, present):
        kept_here = present.keeper in holders or present.keeper not in present.able
        if kept_here or is_stuck:
            return Commit()
    short = short_of_slices(rnd)
    if is_stuck or _is_over_for_the_short(rnd, short, now=now, policy=policy):
        given_up = short
    else:
        given_up = {peer for peer in short if is_lost(rnd, peer)}
        if stalled_s > policy.grace_floor_s:
            given_up |= short - present.connected
    if given_up:
        kept = tuple(s.peer for s in rnd.roster if s.peer not in given_up)
        if not kept:
            return Reopen("every contributor was lost before its slices were reduced")
        return Close(kept, f"{len(given_up)} contributors were lost before the reduction")
    if is_stuck:
        stuck = suspects(rnd, present)
        if stuck and present.can_reduce - rnd.excluded - stuck:
            return Replace(stuck, "a reducer does not deliver what it should")
    return Wait("waiting for updates to be formed and put on disk")


def _is_over_for_the_short(
    rnd: Round, short: set[PeerId], *, now: float, policy: SyncConfig
) -> bool:
    """Return whether the others of the roster have long delivered again what was lost."""
    whole_at = sorted(rnd.completed_at[s.peer] for s in rnd.roster if s.peer not in short)
    quorum = ceil(policy.quorum * len(rnd.roster))
    if not short or len(whole_at) < quorum:
        return False
    return now >= whole_at[quorum - 1] + grace_s(whole_at[quorum - 1] - rnd.opened_at, policy)


def _note_completion(rnd: Round, peer: PeerId, *, now: float) -> None:
    if not is_complete(rnd, peer):
        rnd.completed_at.pop(peer, None)
    elif peer not in rnd.completed_at:
        rnd.completed_at[peer] = now
        arrived = rnd.delivered[peer]
        slices = enumerate(rnd.claims[peer].digests)
        rnd.norms[peer] = sqrt(sum(arrived[slice_] for slice_ in slices))
