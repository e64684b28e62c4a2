"""Our uplink: what leaves on all connections together has the pace of the line, and no more.

    rate of a round --after_round--> pace of the next, for all flows together
                    --joiners' part--> a pace for each flow to a joiner

In a round all members send to all. Unpaced, each flow begins with the window that it had last, all
of them at once; the queues before the receivers overflow, and everybody waits for what was lost.
Paced, the flows take turns piece by piece (`net.connection`), so each receiver gets an even part
of our line, and so of its own. Whoever cannot take its piece now leaves its turn to the others.

The pace is a little less than the line carries: queues stay short, and flows even. One that is too
high costs a few percent: then the line decides, as it would without one. One that is too low would
never be noticed, if rounds that are as fast as their pace were not followed by faster ones.
"""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Final

from atoll.ids import PeerId
from atoll.net.transport import Connection, Transport
from atoll.units import MIB

JOINERS: Final = 0.1  # of the share of a member of the round, for all joiners together
JOINERS_ALONE: Final = 0.7  # of the line: no queue stands before it when a round's flows begin
PART: Final = 0.94  # of the best rate, which is what queues let go above that of the line
ROUNDS: Final = 3  # whose best rate counts: one with slow partners says little of our line
FOLLOWED: Final = 0.98  # of a pace: a round that was as fast as this may have been held down by it
STEP: Final = 0.01  # faster, then; in the round after that by twice as much, and so on
FIRST_STEP: Final = 0.04  # until a round has not followed: without a pace, flows hinder each other
UNPACED_BYTES_PER_S: Final = 32e6  # beyond, the CPU is as likely the limit, and must not be paced
SLOWEST_BYTES_PER_S: Final = float(MIB)  # so the way back is short from a round of slow partners


@dataclass(frozen=True, slots=True)
class Pace:
    """In bytes per second, for all that leaves us; and how much is added if a round follows it."""

    bytes_per_s: float = inf
    step: float = STEP


def after_round(pace: Pace, *, rate: float, best: float) -> Pace:
    """Return the pace of the next round, behind one that had such a rate; `best` of the last."""
    if pace.bytes_per_s == inf:
        return Pace(best, FIRST_STEP)
    if rate < FOLLOWED * pace.bytes_per_s:
        return Pace(PART * best)
    faster = pace.bytes_per_s * (1 + pace.step)
    return Pace(max(faster, PART * best), min(2 * pace.step, 1.0))


class Uplink:
    """Paces what a member sends, on all connections of its transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._pace = Pace()
        self._rate = inf  # of the line
        self._rates: deque[float] = deque(maxlen=ROUNDS)  # of rounds
        self._num_flows: Counter[PeerId | None] = Counter()  # to each member, but for joiners
        self._joining: dict[Connection, None] = {}

    def end_round(self, rate: float, *, best: float, is_sure: bool) -> None:
        """Learn from a round that had this rate, in bytes per second; `best` of the last ones.

        The mean of a short round is below its pace, whatever that is: none comes of it.
        """
        self._rate = best
        self._rates.append(rate)
        of_pace = max(self._rates)
        self._pace = after_round(self._pace, rate=rate, best=of_pace) if is_sure else Pace()
        pace = max(self._pace.bytes_per_s, SLOWEST_BYTES_PER_S)
        self._transport.pace(pace if pace <= UNPACED_BYTES_PER_S else inf)

    @contextmanager
    def flow(self, connection: Connection, *, to_joiner: bool = False) -> Iterator[None]:
        """Count the connection as one that sends: joiners have a small part beside members."""
        if to_joiner:
            self._joining[connection] = None
        else:
            self._num_flows[connection.peer] += 1
        self._share_out()
        try:
            yield
        finally:
            if to_joiner:
                del self._joining[connection]
                connection.pace(inf)  # it may be a member's by and by
            else:
                self._num_flows[connection.peer] -= 1
                if not self._num_flows[connection.peer]:
                    del self._num_flows[connection.peer]
            self._share_out()

    def _share_out(self) -> None:
        """Tell the flows to joiners their pace: there are few, however many members."""
        # However many join, the round of those who train goes first.
        part = min(JOINERS / (len(self._num_flows) + JOINERS), JOINERS_ALONE)
        for connection in self._joining:
            connection.pace(self._rate * part / len(self._joining))
