"""Who does what in a round, as pure functions of what the host knows.

Slices follow from the fragment alone (outer/layout.py), so that a contribution stays valid when its
reducers change; only the assignment of slices to reducers is decided here.

    rates of the links --shares_of_work--> how much each reduces --assign_by_shares--> who reduces
                                                                       reassign        which slice
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import floor, inf
from statistics import median
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atoll.ids import PeerId

_NO_SHARES: Final[Mapping[PeerId, float]] = MappingProxyType({})
_SAME: Final = 1e-9  # shares closer than that are equal, but for rounding


# --- who reduces how much ------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """One member's line, in bytes per second (above 0; None: unknown), and what the member does."""

    peer: PeerId
    up: float | None
    down: float | None
    contributes: bool
    reduces: bool


@dataclass(frozen=True)
class _Costs:
    """What a round's exchange costs M members, in D directions: up and down, which count apart.

    Reducing the share s of all slices takes fixed_s + s * slope_s seconds, in each direction.
    """

    fixed_s_DM: NDArray[np.float64]
    slope_s_DM: NDArray[np.float64]

    def where(self, reduces_M: Sequence[bool]) -> "_Costs":
        return _Costs(self.fixed_s_DM[:, reduces_M], self.slope_s_DM[:, reduces_M])

    def seconds(self, share_M: NDArray[np.float64] | float) -> NDArray[np.float64]:
        seconds_M: NDArray[np.float64] = (self.fixed_s_DM + share_M * self.slope_s_DM).max(axis=0)
        return seconds_M

    def least_seconds(self) -> NDArray[np.float64]:
        """Return the time of each member with the share that is best for it.

        That is none, all, or, if one direction gains what the other loses, where both are equal.
        """
        gap_s_M = self.fixed_s_DM[1] - self.fixed_s_DM[0]
        gain_s_M = self.slope_s_DM[0] - self.slope_s_DM[1]
        equal_M = np.divide(gap_s_M, gain_s_M, out=np.zeros_like(gap_s_M), where=gain_s_M != 0)
        candidates = 0.0, 1.0, np.clip(equal_M, 0, 1)
        least_s_M: NDArray[np.float64] = np.min([self.seconds(s_M) for s_M in candidates], axis=0)
        return least_s_M

    def within(self, seconds_M: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return the least and the largest shares that fit into these times."""
        bound_DM = np.divide(
            seconds_M - self.fixed_s_DM,
            self.slope_s_DM,
            out=np.zeros_like(self.slope_s_DM),
            where=self.slope_s_DM != 0,
        )
        low_M = np.where(self.slope_s_DM < 0, bound_DM, 0).max(axis=0)
        high_M = np.where(self.slope_s_DM > 0, bound_DM, 1).min(axis=0)
        return np.clip(low_M, 0, 1), np.clip(high_M, 0, 1)


def _costs(members: Sequence[Link], *, contribution_bytes: int, update_bytes: int) -> _Costs:
    """Return the costs of the members.

        up      own * C * (1 - s) + U * s * others      C, U: bytes of a contribution, an update
        down    C * s * others + own * U * (1 - s)      own: 1 for contributors, others: the rest

    A member that contributes nothing is the built-in one: what it takes for itself can wait.
    """
    own_M = np.array([link.contributes for link in members], np.float64)
    others_M = own_M.sum() - own_M
    own_DM = np.array([own_M * contribution_bytes, own_M * update_bytes])
    others_DM = np.array([others_M * update_bytes, others_M * contribution_bytes])
    up_M, down_M = _rates([link.up for link in members]), _rates([link.down for link in members])
    rate_DM = np.array([up_M, down_M])
    return _Costs(own_DM / rate_DM, (others_DM - own_DM) / rate_DM)


def _rates(known: Sequence[float | None]) -> list[float]:
    """Return the rates, each unknown one as the median of the others; with none, no limit."""
    middle = median([rate for rate in known if rate is not None] or [inf])
    return [middle if rate is None else rate for rate in known]


def exchange_s(
    members: Sequence[Link],
    shares: Mapping[PeerId, float],
    *,
    contribution_bytes: int,
    update_bytes: int,
) -> float:
    """Return the seconds until the slowest member has moved all its bytes, with these shares."""
    costs = _costs(members, contribution_bytes=contribution_bytes, update_bytes=update_bytes)
    share_M = np.array([shares.get(link.peer, 0.0) for link in members])
    return float(costs.seconds(share_M).max(initial=0.0))


def shares_of_work(
    members: Sequence[Link], *, contribution_bytes: int, update_bytes: int
) -> dict[PeerId, float]:
    """Return the share of the slices that each reducer should reduce, in the order of peer ids.

    They add up to 1 and minimise `exchange_s`. A member that takes longer whatever is done (it
    reduces nothing, or its line has broken down) does not decide about the others: they are as fast
    as they can be, since the round may close without it. Of the shares that are equally good these
    are the nearest to equal ones. If nobody reduces, nobody has a share.

    Within a time T, the shares that a reducer can take are an interval, which widens as T grows. So
    the least T is found by bisection, and then the level up to which the shares are filled, each
    within its interval.
    """
    members = sorted(members, key=lambda link: link.peer)
    reducers = [link.peer for link in members if link.reduces]
    if not reducers:
        return {}
    costs = _costs(members, contribution_bytes=contribution_bytes, update_bytes=update_bytes)
    costs = costs.where([link.reduces for link in members])
    equal = 1 / len(reducers)
    least_s_M = costs.least_seconds()

    def fits(seconds: float) -> bool:
        low_M, high_M = costs.within(np.maximum(seconds, least_s_M))
        return bool(low_M.sum() <= 1 <= high_M.sum())

    seconds = _least(fits, at_most=float(costs.seconds(equal).max()))
    low_M, high_M = costs.within(np.maximum(seconds, least_s_M))
    if (np.maximum(low_M - equal, equal - high_M) < _SAME).all():
        return dict.fromkeys(reducers, equal)
    level = _least(lambda level: bool(np.clip(level, low_M, high_M).sum() >= 1), at_most=1.0)
    return dict(zip(reducers, np.clip(level, low_M, high_M).tolist(), strict=True))


def _least(is_enough: Callable[[float], bool], *, at_most: float) -> float:
    """Return the least number from 0 to `at_most` that is enough; `at_most` is."""
    low, high = 0.0, at_most
    for _ in range(64):  # halvings: a float has 53 bits
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


# --- who reduces which slice ---------------------------------------------------------------------


def assign(num_slices: int, reducers: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Return the reducer of each slice: contiguous runs of near equal length, one per reducer."""
    return tuple(reducers[k * len(reducers) // num_slices] for k in range(num_slices))


def assign_by_shares(
    num_slices: int, shares: Mapping[PeerId, float], *, at_most: int | None = None
) -> tuple[PeerId, ...]:
    """Return the reducer of each slice: contiguous runs, as long as the shares say.

    Whoever would have less than half a slice has none. The rest is rounded down, and the largest
    remainders have one more. Nobody has more than `at_most`, if all together can have so many: what
    is left then goes one by one to whoever lacks most of its share.
    """
    if len(set(shares.values())) == 1:
        return assign(num_slices, list(shares))
    kept = {peer: share for peer, share in shares.items() if share * num_slices >= 0.5} or shares
    if at_most is not None and at_most * len(kept) < num_slices <= at_most * len(shares):
        kept = shares
    most = max(at_most or num_slices, -(-num_slices // len(kept)))
    scale = num_slices / sum(kept.values())
    lengths = {peer: min(floor(share * scale), most) for peer, share in kept.items()}
    while (left := num_slices - sum(lengths.values())) > 0:
        able = [peer for peer in kept if lengths[peer] < most]
        by_remainder = sorted(able, key=lambda peer: lengths[peer] - kept[peer] * scale)
        for peer in by_remainder[:left]:
            lengths[peer] += 1
    return tuple(peer for peer, length in lengths.items() for _ in range(length))


def reassign(
    assignment: Sequence[PeerId],
    *,
    lost: frozenset[PeerId],
    reducers: Sequence[PeerId],
    shares: Mapping[PeerId, float] = _NO_SHARES,
    at_most: int | None = None,
) -> tuple[PeerId, ...]:
    """Return the assignment with the slices of lost reducers dealt out, the others where they are.

    A slice goes to whoever lacks most of its share of all slices, the first of `reducers` among
    equals; without shares, to whoever reduces fewest so far. Nobody gets more than `at_most` slices
    as long as somebody has fewer.
    """
    scale = len(assignment) / (sum(shares.get(peer, 0.0) for peer in reducers) or 1.0)
    room = {peer: shares.get(peer, 0.0) * scale for peer in reducers}
    number = dict.fromkeys(reducers, 0)
    for peer in assignment:
        if peer in room and peer not in lost:
            room[peer] -= 1
            number[peer] += 1
    most = at_most or len(assignment)
    result = list(assignment)
    for k, peer in enumerate(assignment):
        if peer in lost:
            result[k] = max(room, key=lambda other: (number[other] < most, room[other]))
            room[result[k]] -= 1
            number[result[k]] += 1
    return tuple(result)


def runs(assignment: Sequence[PeerId]) -> list[tuple[PeerId, int, int]]:
    """Return the assignment as (reducer, start, stop) for each run of slices with one reducer."""
    result: list[tuple[PeerId, int, int]] = []
    for k, peer in enumerate(assignment):
        if result and result[-1][0] == peer:
            result[-1] = (peer, result[-1][1], k + 1)
        else:
            result.append((peer, k, k + 1))
    return result


def send_order(runs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the slices of these runs (start, stop), the first of each, then the second of each...

    All runs are sent at once, so this is the order in which their slices are needed.
    """
    turns = zip_longest(*(range(start, stop) for start, stop in runs))
    return [index for turn in turns for index in turn if index is not None]


# --- who counts how much -------------------------------------------------------------------------


def shares(
    num_tokens: Mapping[PeerId, int], norms: Mapping[PeerId, float], *, clip_to_median: float
) -> dict[PeerId, float]:
    """Return each contributor's share of the mean, in the order of peer ids; they add up to 1.

    share ~ tokens * min(1, clip_to_median * median norm / norm): a contribution far longer than the
    others counts for less, and none can choose its weight. One contributor has share 1 exactly.
    """
    limit = clip_to_median * median(norms.values())
    weights = {
        peer: num_tokens[peer] * min(1.0, limit / norms[peer] if norms[peer] > 0 else 1.0)
        for peer in sorted(num_tokens)
    }
    total = sum(weights.values())
    return {peer: weight / total for peer, weight in weights.items()}
