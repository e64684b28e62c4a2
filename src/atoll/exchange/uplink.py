"""Our uplink, shared out: every flow is paced, so that no burst of ours fills a queue on the way.

    rate of the line --by member--> a rate for each flow    (set anew when a flow begins or ends)

    unpaced round --its rate--> paced rounds, until one is slower or faster than it --> unpaced ...

In a round all members send to all. Unpaced, each flow begins with the window that it had last, all
of them at once; the queues before the receivers overflow, and everybody waits for what was lost.
Paced, each receiver gets just what its line carries, and flows that start late lose nothing.

A pace can also be wrong. A slow receiver does not use its part, the others may not have it, so the
line looks slower than it is, and the next pace is lower still. Hence the rounds without one.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, isclose
from typing import Final

from atoll.ids import PeerId
from atoll.net.transport import Connection

JOINERS: Final = 0.1  # of the share of a member of the round, for all joiners together
JOINERS_ALONE: Final = 0.7  # of the line: no queue stands before it when a round's flows begin
HEADROOM: Final = 1.1  # times the measured rate, for a line may have become faster
SLOWER: Final = 0.8  # times the rate without a pace: then the pace may be why
FASTER: Final = 1.05  # times that rate: then it was not all that the line can do
UNPACED_BYTES_PER_S: Final = 250e6  # beyond, timers cost more than bursts
CLOSE: Final = 0.03  # a pace that differs by less stays: one more of a thousand need not tell all


class Uplink:
    """`rate` says how many bytes per second the line carries, or None while nobody knows."""

    def __init__(self, rate: Callable[[], float | None]) -> None:
        self._rate = rate
        self._to_joiner: dict[Connection, bool] = {}  # of each flow
        self._num_flows: Counter[PeerId | None] = Counter()  # to each member, but for joiners
        self._num_joining = 0
        self._paces = (0.0, 0.0)  # of flows to members and to joiners, as all were told last
        self._is_paced = False  # the round; joiners always are
        self._unpaced_rate = 0.0  # of the last round that was not

    def end_round(self, rate: float) -> None:
        """Decide by the rate of a round, in bytes per second, whether the next one has a pace."""
        if self._is_paced:
            slowest, fastest = SLOWER * self._unpaced_rate, FASTER * self._unpaced_rate
            self._is_paced = slowest <= rate <= fastest
        else:
            self._unpaced_rate, self._is_paced = rate, True

    @contextmanager
    def flow(self, connection: Connection, *, to_joiner: bool = False) -> Iterator[None]:
        """Count the connection as one that sends: it has a share of the line among the others."""
        self._to_joiner[connection] = to_joiner
        self._count(connection, 1)
        self._share_out(connection)
        try:
            yield
        finally:
            self._count(connection, -1)
            del self._to_joiner[connection]
            self._share_out()

    def _count(self, connection: Connection, by: int) -> None:
        if self._to_joiner[connection]:
            self._num_joining += by
            return
        self._num_flows[connection.peer] += by
        if not self._num_flows[connection.peer]:
            del self._num_flows[connection.peer]

    def _share_out(self, *new: Connection) -> None:
        """Tell the new flows their pace, and all others if theirs is another by now."""
        rate = self._rate()
        if rate is None or not self._to_joiner:
            return
        paces = self._paces_at(rate if rate <= UNPACED_BYTES_PER_S else inf)
        before = zip(paces, self._paces, strict=True)
        if not all(isclose(pace, told, rel_tol=CLOSE) for pace, told in before):
            self._paces = paces
            new = tuple(self._to_joiner)
        for connection in new:
            connection.pace(paces[self._to_joiner[connection]])

    def _paces_at(self, rate: float) -> tuple[float, float]:
        """Return the pace of a flow to a member, and of one to a joiner."""
        num_joining = self._num_joining
        # A member has one share, however many flows go there: slices and updates fit into it
        # together, and neither has to find a new rate when the other begins or ends.
        # However many join, the round of those who train goes first.
        whole = len(self._num_flows) + (JOINERS if num_joining else 0.0)
        to_joiners = rate * min(JOINERS / whole, JOINERS_ALONE) if num_joining else 0.0
        to_member = HEADROOM * rate / whole if self._is_paced else inf
        return to_member, to_joiners / max(1, num_joining)
