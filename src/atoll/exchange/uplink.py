"""Our uplink, shared out: every flow is paced, so that no burst of ours fills a queue on the way.

    rate of the line --by weight--> a rate for each flow    (set anew when a flow begins or ends)

In a round all members send to all. Unpaced, each flow begins with the window that it had last, all
of them at once; the queues before the receivers overflow, and everybody waits for what was lost.
Paced, each receiver gets just what its line carries, and flows that start late lose nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

from atoll.net.transport import Connection

SLICES: Final = 1.0  # what a flow of a round weighs
UPDATES: Final = 0.2  # each needs a slice of every contributor, so slices go first
JOINERS: Final = 0.1  # what all flows to joiners weigh together, beside one flow of a round
JOINERS_ALONE: Final = 0.7  # of the line: no queue stands before it when a round's flows begin
HEADROOM: Final = 1.1  # times the measured rate, for a line may have become faster
UNPACED_BYTES_PER_S: Final = 250e6  # beyond, timers cost more than bursts


class Uplink:
    """`rate` says how many bytes per second the line carries, or None while nobody knows."""

    def __init__(self, rate: Callable[[], float | None]) -> None:
        self._rate = rate
        self._weights: dict[Connection, float | None] = {}  # of each flow; None: it is to a joiner

    @contextmanager
    def flow(self, connection: Connection, *, weight: float | None = SLICES) -> Iterator[None]:
        """Count the connection as one that sends, with this weight; None: to a joiner."""
        self._weights[connection] = weight
        self._share_out()
        try:
            yield
        finally:
            del self._weights[connection]
            self._share_out()

    def _share_out(self) -> None:
        rate = self._rate()
        if rate is None:
            return
        if rate > UNPACED_BYTES_PER_S:
            rate = inf
        num_joining = sum(weight is None for weight in self._weights.values())
        of_round = [weight for weight in self._weights.values() if weight is not None]
        # However many join, the round of those who train goes first.
        joining = JOINERS * max(of_round, default=SLICES) if num_joining else 0.0
        whole = sum(of_round) + joining
        for connection, weight in self._weights.items():
            if weight is None:
                connection.pace(rate * min(joining / whole, JOINERS_ALONE) / num_joining)
            else:
                connection.pace(HEADROOM * rate * weight / whole)
