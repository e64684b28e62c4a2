"""Who does what in a round, as pure functions of what the host knows.

Slices follow from the fragment alone (outer/layout.py), so that a contribution stays valid when its
reducers change; only the assignment of slices to reducers is decided here.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from atoll.ids import PeerId


def assign(num_slices: int, reducers: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Return the reducer of each slice: contiguous runs of near equal length, one per reducer."""
    return tuple(reducers[k * len(reducers) // num_slices] for k in range(num_slices))


def reassign(
    assignment: Sequence[PeerId], *, lost: frozenset[PeerId], reducers: Sequence[PeerId]
) -> tuple[PeerId, ...]:
    """Return the assignment with the slices of lost reducers dealt out, the others where they are.

    A slice goes to whoever reduces fewest so far, the first of `reducers` among equals.
    """
    load = dict.fromkeys(reducers, 0)
    for peer in assignment:
        if peer in load and peer not in lost:
            load[peer] += 1
    result = list(assignment)
    for k, peer in enumerate(assignment):
        if peer in lost:
            result[k] = min(load, key=lambda other: load[other])
            load[result[k]] += 1
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
