"""The course of one round in a fleet that runs steadily: who delivers when, when the host closes.

    blocking   steps | snapshot | send ... close | updates | outer step, hash, merge |
    overlap    steps of the next round go on meanwhile; only snapshot and merge interrupt them

The host closes when everyone has delivered, or when the quorum has and the grace time is over:
its own rule (host/rounds.py). Whoever is later carries its work, and is in the roster of some
later round.

Shapes: M members, P peers that train, the first of the members.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atoll.config import SyncConfig
from atoll.forecast.exchange import Exchange, Floats
from atoll.host.late import grace_s
from atoll.host.open_round import quorum_of

# Seconds for each value, measured idle on two cores of a shared server (docs/benchmarks/round.md).
SNAPSHOT_S: Final = 1e-9
MERGE_S: Final = 2e-9
OUTER_STEP_S: Final = 4e-9
HASH_S: Final = 2e-9

GAP_S: Final = 0.1  # between the phases: the last slice is checked, the first update is formed
# Trips, one way, that follow one on the other.
TRIPS_BEFORE_CLOSE: Final = 4  # Bring, Holding, the last Slice, Delivered
TRIPS_AFTER_CLOSE: Final = 4  # Reduce, the last Update, Held, Commit
TRIPS_OF_LEVEL: Final = 2  # a partial sum up, an update down


@dataclass(frozen=True, slots=True, eq=False)
class Machines:
    """`rtt_s_P`: a round trip between each peer and the others."""

    disk_bytes_per_s_P: Floats
    rtt_s_P: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What each peer does by itself in a round, in seconds."""

    steps_s_P: Floats
    snapshot_s: float
    save_s_P: Floats  # beside the sending
    outer_step_s: float  # and what is hashed
    merge_s: float
    rtt_s_P: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """`every_P`: in the roster of each round (1), or only of every second, third, ... one."""

    round_s: float
    exchange_s: float  # from the snapshot of the last one on time to the new weights
    close_after_s: float  # of the plan
    on_time_P: NDArray[np.bool_]
    every_P: NDArray[np.int64]
    utilisation_P: Floats  # share of the time in inner steps


def work_of(
    num_values: int, *, all_values: int, moments: int, steps_s_P: Floats, machines: Machines
) -> Work:
    """Return the work beside the exchange of a fragment of so many values of all.

    `moments` are the bytes that the inner optimizer remembers, on disk before a commit.
    """
    return Work(
        steps_s_P=steps_s_P,
        snapshot_s=SNAPSHOT_S * num_values,
        # The moments are saved once all fragments have had their turn: on average, a part of them.
        save_s_P=moments * num_values / all_values / machines.disk_bytes_per_s_P,
        outer_step_s=OUTER_STEP_S * num_values + HASH_S * all_values,
        merge_s=MERGE_S * num_values,
        rtt_s_P=machines.rtt_s_P,
    )


def course_of(exchange: Exchange, work: Work, policy: SyncConfig) -> Course:
    """Return the course of a round once the rounds before it went the same way."""
    overlaps = policy.mode == "overlap"
    pause_s = work.snapshot_s + work.merge_s
    send_s_P = _send_s(exchange, work)
    fetch_s_P = _fetch_s(exchange, work)
    opens_s = _opens_s(fetch_s_P, policy)  # after the close: when the next round begins
    on_time_P = fetch_s_P <= opens_s
    while True:  # whoever is found late stays so: the others only get faster
        exchange_s = float(send_s_P[on_time_P].max()) + opens_s
        # Overlapped, the steps of a round begin when the round before is still being exchanged.
        head_start_s = exchange_s if overlaps else 0.0
        delivered_s_P = np.maximum(work.steps_s_P - head_start_s, 0.0) + send_s_P
        close_s = _close_s(delivered_s_P, policy)
        still_P = on_time_P & (delivered_s_P <= close_s)
        if (still_P == on_time_P).all():
            break
        if not still_P.any():  # the quick to deliver are slow to fetch, and the other way round
            on_time_P = delivered_s_P <= close_s  # they are in the roster, and begin later
            break
        on_time_P = still_P
    round_s = close_s + opens_s
    own_s_P = work.steps_s_P + pause_s
    if overlaps:
        round_s = max(round_s, float(own_s_P[on_time_P].max()))
        own_s_P = np.maximum(own_s_P, send_s_P + fetch_s_P)
    else:
        own_s_P = own_s_P + send_s_P + fetch_s_P
    turns_P = np.ceil(own_s_P / round_s).astype(np.int64)
    every_P = np.where(on_time_P, 1, np.maximum(turns_P, 2))
    return Course(
        round_s=round_s,
        exchange_s=exchange_s,
        close_after_s=close_s,
        on_time_P=on_time_P,
        every_P=every_P,
        utilisation_P=np.minimum(work.steps_s_P / (every_P * round_s), 1.0),
    )


def _send_s(exchange: Exchange, work: Work) -> Floats:
    """Return how long after its steps each peer has delivered: all reducers take in all at once."""
    num_peers = len(work.steps_s_P)
    sent_s_P = exchange.contributions.up_s_M[:num_peers]
    taken_s = exchange.contributions.down_s_M.max()
    trips_s_P = TRIPS_BEFORE_CLOSE / 2 * work.rtt_s_P
    moved_s_P = np.maximum(np.maximum(sent_s_P, taken_s), work.save_s_P)
    send_s_P: Floats = work.snapshot_s + moved_s_P + trips_s_P
    return send_s_P


def _fetch_s(exchange: Exchange, work: Work) -> Floats:
    """Return how long after the close each peer trains from the new weights.

    A commit waits for the reducers' lines, and for the built-in member to have all updates.
    """
    updates, num_peers = exchange.updates, len(work.steps_s_P)
    committed_s = max(updates.up_s_M.max(), updates.down_s_M[num_peers:].max(initial=0.0))
    moved_s_P = np.maximum(committed_s, updates.down_s_M[:num_peers])
    num_trips = TRIPS_AFTER_CLOSE + TRIPS_OF_LEVEL * (exchange.num_levels - 1)
    trips_s_P = num_trips / 2 * work.rtt_s_P
    fetch_s_P: Floats = GAP_S + moved_s_P + trips_s_P + work.outer_step_s + work.merge_s
    return fetch_s_P


def _opens_s(fetch_s_P: Floats, policy: SyncConfig) -> float:
    """Return when the next round opens: all are ready, or enough were, the shortest grace ago."""
    in_order = np.sort(fetch_s_P)
    enough_s = float(in_order[min(policy.min_peers, len(in_order)) - 1])
    return min(float(in_order[-1]), enough_s + policy.grace_floor_s)


def _close_s(delivered_s_P: Floats, policy: SyncConfig) -> float:
    """Return when the host closes, in seconds after the plan."""
    in_order = np.sort(delivered_s_P)
    quorum_s = float(in_order[quorum_of(len(in_order), policy) - 1])
    return min(float(in_order[-1]), quorum_s + grace_s(quorum_s, policy))
