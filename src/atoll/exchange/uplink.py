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

EXCHANGE: Final = 1.0  # weights of flows
STATE: Final = 0.1  # of what joiners fetch: the round of those who train goes first
HEADROOM: Final = 1.1  # times the measured rate, for a line may have become faster
UNPACED_BYTES_PER_S: Final = 250e6  # beyond, timers cost more than bursts


class Uplink:
    """`rate` says how many bytes per second the line carries, or None while nobody knows."""

    def __init__(self, rate: Callable[[], float | None]) -> None:
        self._rate = rate
        self._weights: dict[Connection, float] = {}

    @contextmanager
    def flow(self, connection: Connection, *, weight: float = EXCHANGE) -> Iterator[None]:
        """Count the connection as one that sends, with this share of the line among the others."""
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
        whole = sum(self._weights.values())
        for connection, weight in self._weights.items():
            connection.pace(HEADROOM * rate * weight / whole)
