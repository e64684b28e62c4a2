"""Which reducers of a round others should relieve: they are too slow, stuck, or out of reach. Pure.

    slices    on their way to the regions, before the close
    sums      formed, level by level, each once all that it is made of is there
    updates   on their way from the root to those whose disks a commit needs

Only a reducer that has what it needs can be late: whoever waits for another one is not.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from math import inf

from atoll.config import SyncConfig
from atoll.host.decision import Present, Replace, Wait
from atoll.host.late import Arrivals, late_reducers
from atoll.host.open_round import (
    Phase,
    Round,
    num_enough,
    quorum_in,
    short_of_slices,
    waited_for,
)
from atoll.ids import PeerId


def relieve(rnd: Round, *, now: float, present: Present, policy: SyncConfig) -> Replace | Wait:
    """Return which reducers are too slow for this round, if there are others to take.

    Only time makes them so: it is enough to ask with each tick, when nothing else is due.
    """
    if rnd.phase is Phase.COLLECT:
        stages = [_collected(rnd, present, policy)]
    elif short_of_slices(rnd):
        return Wait("contributors deliver again what was lost")
    else:
        stages = [*_summed(rnd), _fetched(rnd, present)]
    # It may well be a line that receives which is slow.
    usual_s = None if rnd.phase is Phase.REDUCE and _is_served(rnd) else rnd.usual_s
    late: frozenset[PeerId] = frozenset()
    for arrivals in stages:
        late |= late_reducers(
            [rnd.assignment[place] for place in arrivals],
            list(arrivals.values()),
            opened_at=rnd.opened_at,
            usual_s=usual_s,
            now=now,
            policy=policy,
        )
    if late and present.can_reduce - rnd.excluded - late:
        return Replace(late, "others would be done sooner than a slow reducer")
    return Wait("no reducer is slower than the others can make good")


def suspects(rnd: Round, present: Present) -> frozenset[PeerId]:
    """Return the reducers of what was not formed though it could be, or not served as reported.

    Without any, those whose updates have not come to the disks that a commit needs.
    """
    at_root = rnd.tree.places(rnd.tree.root)
    stuck = {
        rnd.assignment[place]
        for group in rnd.populated
        for place, inputs_at in _inputs_at(rnd, group).items()
        if place not in rnd.reduced and inputs_at < inf
    }
    for held in rnd.held.values():
        stuck |= {
            rnd.assignment[place]
            for place, digest in zip(at_root, held, strict=True)
            if place in rnd.reduced and digest != rnd.reduced[place].digest
        }
    arrivals = _fetched(rnd, present)
    return frozenset(
        stuck or {rnd.assignment[place] for place, one in arrivals.items() if one.done_at is None}
    )


def shunned_reducers(rnd: Round, unfinished: set[PeerId], present: Present) -> frozenset[PeerId]:
    """Return the reducers that all the unfinished who need them complain about.

    Only if there are others to take. For a partial sum it is also enough if whoever adds it up
    complains, unless that one complains about most of those that it needs.
    """
    groups: dict[PeerId, set[int]] = {}
    for place, reducer in enumerate(rnd.assignment):
        if reducer in rnd.complaints:
            groups.setdefault(reducer, set()).add(rnd.tree.group_and_slice(place)[0])
    shunned = set()
    for reducer, served in groups.items():
        clients = {peer for peer in unfinished if rnd.group_of(peer) in served}
        if clients and clients <= rnd.complaints[reducer]:
            shunned.add(reducer)
        shunned |= {_at_fault(rnd, above, reducer) for above in _above(rnd, reducer, served)}
    return frozenset(shunned) if present.can_reduce - rnd.excluded - shunned else frozenset()


def _above(rnd: Round, reducer: PeerId, groups: Iterable[int]) -> set[PeerId]:
    """Return who adds up sums of these groups, still has to, and cannot reach their reducer."""
    tree = rnd.tree
    return {
        rnd.assignment[above]
        for group in groups
        if (parent := tree.parent(group)) is not None
        for place, above in zip(tree.places(group), tree.places(parent), strict=True)
        if rnd.assignment[place] == reducer
        and above not in rnd.reduced
        and rnd.assignment[above] in rnd.complaints[reducer]
    }


def _at_fault(rnd: Round, above: PeerId, reducer: PeerId) -> PeerId:
    """Return which of the two is out of reach: whom the one above, or it, cannot reach."""
    tree = rnd.tree
    below = {
        rnd.assignment[tree.place(child, k)]
        for group in range(tree.num_groups)
        for k, place in enumerate(tree.places(group))
        if rnd.assignment[place] == above
        for child in tree.children(group)
    }
    missed = {other for other in below if above in rnd.complaints.get(other, ())}
    return above if 2 * len(missed) > len(below) > 1 else reducer


# --- how far the round is ------------------------------------------------------------------------


def _collected(rnd: Round, present: Present, policy: SyncConfig) -> dict[int, Arrivals]:
    """Return how far the slices are on their way to the regions, each once its quorum has begun."""
    members: dict[int, set[PeerId]] = {group: set() for group in range(rnd.tree.num_regions)}
    for peer in waited_for(rnd, present):
        members[rnd.group_of(peer)].add(peer)
    begun = [_by_region(rnd, times) for times in (rnd.began_at, rnd.claimed_at)]
    result = {}
    for group, waited in members.items():
        if not waited:
            continue
        quorum = quorum_in(rnd, waited, present=present, policy=policy)
        begun_at = [
            sorted(times[group])[quorum - 1] for times in begun if len(times[group]) >= quorum
        ]
        began_at = min(begun_at, default=inf)
        collected = {place: rnd.collected_at.get(place, {}) for place in rnd.tree.places(group)}
        needed = _needed(list(collected.values()), enough=quorum)
        for place, of_slice in collected.items():
            times, since = list(of_slice.values()), rnd.moved_at.get(place, began_at)
            result[place] = Arrivals(
                since=since,
                needed=needed,
                arrived=len(times),
                last_at=times[-1] if times else since,
                done_at=times[needed - 1] if len(times) >= needed else None,
            )
    return result


def _by_region(rnd: Round, times: Mapping[PeerId, float]) -> dict[int, list[float]]:
    """Return the times of the peers of each region."""
    result: dict[int, list[float]] = {group: [] for group in range(rnd.tree.num_regions)}
    for peer, at in times.items():
        result[rnd.group_of(peer)].append(at)
    return result


def _summed(rnd: Round) -> list[dict[int, Arrivals]]:
    """Return for each level below the root which partial sums are formed."""
    return [
        {
            place: _formed(rnd, place, inputs_at)
            for group in level
            if group in rnd.populated
            for place, inputs_at in _inputs_at(rnd, group).items()
        }
        for level in rnd.tree.levels[:-1]
    ]


def _formed(rnd: Round, place: int, inputs_at: float) -> Arrivals:
    since = _since(rnd, place, inputs_at)
    done_at = rnd.reduced_at.get(place)
    return Arrivals(
        since=since,
        needed=1,
        arrived=int(done_at is not None),
        last_at=since if done_at is None else done_at,
        done_at=done_at,
    )


def _since(rnd: Round, place: int, inputs_at: float) -> float:
    """Return since when the reducer of a place has what it needs: a new one gets it all again."""
    if place not in rnd.moved_at:
        return inputs_at
    again = (at for peer, at in rnd.collected_at.get(place, {}).items() if peer in rnd.in_roster)
    return max(inputs_at, rnd.moved_at[place], *again)


def _inputs_at(rnd: Round, group: int) -> dict[int, float]:
    """Return since when all is there that each sum of a group is made of; infinite: it is not."""
    tree, below = rnd.tree, rnd.below(group)
    return {
        place: max(
            [rnd.announced_at] + [rnd.reduced_at.get(tree.place(child, k), inf) for child in below]
        )
        for k, place in enumerate(tree.places(group))
    }


def _is_served(rnd: Round) -> bool:
    """Return whether a member has updates that somebody else has formed."""
    at_root = rnd.tree.places(rnd.tree.root)
    return any(
        peer != rnd.assignment[at_root[k]] for k, times in rnd.fetched_at.items() for peer in times
    )


def _fetched(rnd: Round, present: Present) -> dict[int, Arrivals]:
    """Return how far the updates are on their way to those whose disks a commit needs."""
    fetched = [rnd.fetched_at.get(k, {}) for k in range(rnd.num_slices)]
    needed = _needed(fetched, enough=num_enough(present))
    inputs_at = _inputs_at(rnd, rnd.tree.root)
    result = {}
    for place, times in zip(rnd.tree.places(rnd.tree.root), fetched, strict=True):
        since = _since(rnd, place, inputs_at[place])
        first = list(islice(times.values(), needed))
        kept_at = times.get(present.keeper) if present.keeper in present.able else since
        result[place] = Arrivals(
            since=since,
            needed=needed,
            arrived=len(first) if kept_at is not None else min(len(first), needed - 1),
            last_at=max(first, default=since),
            done_at=None if kept_at is None or len(first) < needed else max(*first, kept_at),
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
