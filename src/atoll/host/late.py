"""Which reducers keep a round waiting although others would do their work sooner. Pure.

A line that has become slow still trickles, so silence does not give it away. What does is the work
of the others in the same round:

    done     every slice of the reducer has arrived often enough: contributions at the reducer
             before the close, updates at members after it
    base     when the last of those that are done became so; with none, when they usually are
    late     not done at base + grace, and, at the pace so far, done later than if those that are
             done had to do its work as well

So a fleet that is slow as a whole waits for itself, and whoever is nearly done may finish.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from atoll.config import SyncConfig
from atoll.ids import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How far one slice is: what arrived `since`, of the `needed` times that it has to."""

    since: float  # when it was given to its reducer, or could arrive for the first time
    needed: int
    arrived: int
    last_at: float  # `since`, if nothing has arrived yet
    done_at: float | None  # when it had arrived often enough


@dataclass(frozen=True, slots=True)
class _Work:
    """How far all the slices of one reducer are."""

    slices: Sequence[Arrivals]

    @property
    def done_at(self) -> float | None:
        times = [one.done_at for one in self.slices if one.done_at is not None]
        return max(times) if len(times) == len(self.slices) else None

    @property
    def since(self) -> float:
        return max(one.since for one in self.slices)

    def seconds_left(self, now: float) -> float:
        """Return how long the rest takes at the pace so far, the mean or the latest."""
        arrived = sum(min(one.arrived, one.needed) for one in self.slices)
        missing = sum(max(one.needed - one.arrived, 0) for one in self.slices)
        if not arrived:
            return inf
        mean_s = (now - self.since) / arrived
        latest_s = now - max(one.last_at for one in self.slices)
        return missing * max(mean_s, latest_s)


def late_reducers(
    assignment: Sequence[PeerId],
    arrivals: Sequence[Arrivals],
    *,
    opened_at: float,
    usual_s: float | None,
    now: float,
    policy: SyncConfig,
) -> frozenset[PeerId]:
    """Return the reducers of these slices whose work others should do.

    `usual_s` is how long all the reducers took in earlier rounds, if anybody knows: where none is
    done, that is the only measure.
    """
    slices: dict[PeerId, list[Arrivals]] = {}
    for reducer, one in zip(assignment, arrivals, strict=True):
        slices.setdefault(reducer, []).append(one)
    work = {reducer: _Work(of_one) for reducer, of_one in slices.items()}
    done = {reducer: at for reducer, its in work.items() if (at := its.done_at) is not None}
    undone = {reducer: its for reducer, its in work.items() if reducer not in done}
    if not done and usual_s is None:
        return frozenset()
    num_undone = sum(len(its.slices) for its in undone.values())
    num_done = len(assignment) - num_undone
    late = set()
    for reducer, its in undone.items():
        if done:
            base = max(*done.values(), its.since)
            others_s = num_undone / num_done * max(at - work[d].since for d, at in done.items())
        else:
            assert usual_s is not None
            base, others_s = its.since + usual_s, usual_s
        is_over = now >= base + grace_s(base - opened_at, policy)
        if is_over and its.seconds_left(now) > others_s:
            late.add(reducer)
    return frozenset(late)


def grace_s(took_s: float, policy: SyncConfig) -> float:
    """Return how long a round waits for others, after what it was to wait for took so long."""
    return policy.grace_floor_s + policy.grace_factor * took_s
