"""What the exchange of one round moves, and how long its two phases take, member by member.

    lines --shares_of_work, assign_by_shares--> slices of each reducer --> bytes --> seconds

    contributions   every contributor brings each slice to its reducer
    updates         every member fetches each update from its reducer, the host's built-in one too:
                    a commit waits for its disk

Who reduces what is decided by the host's own code (exchange/plan.py). The second phase begins when
the first is over, so each takes as long as its slowest line; `plan.exchange_s`, which the shares
minimise, adds up each member's bytes of both and is a lower bound.

Shapes: M members, S slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atoll.exchange import plan
from atoll.exchange.plan import Link
from atoll.units import KIB

Floats = NDArray[np.float64]

# Payload in what a line carries: 1448 bytes of a TCP segment with timestamps in an Ethernet frame
# of 1514, and TLS records of 16 KiB with 22 bytes around them (RFC 8446, section 5.2).
PAYLOAD_SHARE: Final = 1448 / 1514 * (16 * KIB) / (16 * KIB + 22)

# What the process of an agent moves at most, each way at once, with encoding, TLS and checking: on
# one core, 0.54 s for 62 MB each way (docs/benchmarks/exchange.md, loopback, 2026-11-23).
AGENT_BYTES_PER_S: Final = 62.2e6 / 0.54


def payload_rate(mbps: float) -> float:
    """Return the payload, in bytes per second, that a line of so many Mb/s carries."""
    return min(mbps * 1e6 / 8 * PAYLOAD_SHARE, AGENT_BYTES_PER_S)


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """The payload that each member sends and receives, and how long that takes on its line."""

    up_bytes_M: Floats
    down_bytes_M: Floats
    up_s_M: Floats
    down_s_M: Floats

    def seconds(self) -> Floats:
        """Return the time of each member: both directions count apart."""
        return np.maximum(self.up_s_M, self.down_s_M)


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """`num_slices_M`: how many slices each member reduces."""

    lines: tuple[Link, ...]
    num_slices_M: NDArray[np.int64]
    formed_bytes_M: Floats  # of the updates, those that the member forms
    contributions: Phase
    updates: Phase

    def sent_bytes(self) -> Floats:
        """Return what each member sends in both phases."""
        return self.contributions.up_bytes_M + self.updates.up_bytes_M

    def received_bytes(self) -> Floats:
        """Return what each member receives in both phases."""
        return self.contributions.down_bytes_M + self.updates.down_bytes_M

    def seconds(self) -> float:
        """Return the time of both phases, if all begin at once and nobody is left out."""
        return float(self.contributions.seconds().max() + self.updates.seconds().max())


def exchange_of(
    lines: Sequence[Link], *, contribution_bytes_S: Sequence[int], update_bytes_S: Sequence[int]
) -> Exchange:
    """Return the exchange of a fragment of these slices among these members; all rates are known.

    Somebody has to reduce.
    """
    lines = tuple(sorted(lines, key=lambda line: line.peer))
    shares = plan.shares_of_work(
        lines, contribution_bytes=sum(contribution_bytes_S), update_bytes=sum(update_bytes_S)
    )
    place = {line.peer: index for index, line in enumerate(lines)}
    reducer_S = np.array(
        [place[peer] for peer in plan.assign_by_shares(len(update_bytes_S), shares)], np.int64
    )
    own_M = np.array([line.contributes for line in lines], np.float64)
    reduced_M = _sums(contribution_bytes_S, reducer_S, num_members=len(lines))
    formed_M = _sums(update_bytes_S, reducer_S, num_members=len(lines))
    rates_DM = np.array([[line.up, line.down] for line in lines], np.float64).T

    def phase(up_bytes_M: Floats, down_bytes_M: Floats) -> Phase:
        up_s_M, down_s_M = up_bytes_M / rates_DM[0], down_bytes_M / rates_DM[1]
        return Phase(up_bytes_M, down_bytes_M, up_s_M, down_s_M)

    return Exchange(
        lines=lines,
        num_slices_M=np.bincount(reducer_S, minlength=len(lines)),
        formed_bytes_M=formed_M,
        contributions=phase(
            own_M * (sum(contribution_bytes_S) - reduced_M), reduced_M * (own_M.sum() - own_M)
        ),
        updates=phase(formed_M * (len(lines) - 1), sum(update_bytes_S) - formed_M),
    )


def _sums(bytes_S: Sequence[int], reducer_S: NDArray[np.int64], *, num_members: int) -> Floats:
    """Return the bytes of each member's slices."""
    weights_S = np.array(bytes_S, np.float64)
    return np.bincount(reducer_S, weights_S, minlength=num_members).astype(np.float64)


def ring_rate(*, num_bytes: float, num_peers: int, seconds: float) -> float:
    """Return the bytes per second at which a ring all-reduce of N peers takes so long.

    Each peer sends 2 (N - 1) / N of the vector, and receives as much at the same time (Patarasu and
    Yuan, Journal of Parallel and Distributed Computing 69, 2009).
    """
    return 2 * (num_peers - 1) / num_peers * num_bytes / seconds
