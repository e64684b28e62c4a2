"""What it costs to join a run that is under way: the state, then the updates missed meanwhile.

A state is parameters and momentum, 8 bytes a value. It comes from all members that can be dialled
at once, as fast as the joiner's line and what the exchange leaves of theirs allow. Rounds go on
meanwhile; the joiner fetches their updates, too, and trains when it is level.
"""

from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.forecast.exchange import Exchange, payload_rate
from atoll.forecast.fleet import GroupConfig

STATE_BYTES = 8  # for each value
LEAST_SHARE = 0.05  # of an uplink for joiners, however busy: their flows have a tenth of the weight


class Joiner(NamedTuple):
    """`seconds` is infinite if the rounds go by faster than their updates can be fetched."""

    seconds: float
    rounds: float  # that pass meanwhile


def joiner_of(
    group: GroupConfig, exchange: Exchange, *, num_values: int, update_bytes: int, round_s: float
) -> Joiner:
    """Return what one more peer of this group waits for, before it trains."""
    up_M = np.array([line.up for line in exchange.lines], np.float64)
    busy_M = exchange.sent_bytes() / (up_M * round_s)
    free_M = up_M * np.maximum(1 - busy_M, LEAST_SHARE)
    rate = min(payload_rate(group.down_mbps), float(free_M[_sources(exchange)].sum()))
    # In T seconds come the state and the updates of T / round_s rounds.
    left = rate - update_bytes / round_s
    seconds = STATE_BYTES * num_values / left if left > 0 else inf
    return Joiner(seconds=seconds, rounds=seconds / round_s)


def num_sources(exchange: Exchange) -> int:
    """Return how many members a joiner fetches from, each its part."""
    return int(_sources(exchange).sum())


def _sources(exchange: Exchange) -> NDArray[np.bool_]:
    is_source_M = np.array([line.reduces for line in exchange.lines])
    is_source_M[-1] = True  # the host's built-in member can always be dialled
    return is_source_M
