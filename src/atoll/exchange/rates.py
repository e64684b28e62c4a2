"""How fast our own line is, from the transfers that a run makes anyway. No probing.

    transfers   |--a--|     |---b---|           each with its bytes
                     |--c--|     |----d----|        |--e--|
    busy time   |-------------------------|         |-----|     what is idle does not count
    windows             |~~~~~~~~~|                             the fastest one is the round's rate

A receiver that is slower than we are can keep us busy for long after the others are done. That says
nothing of our line, so neither the mean of a round counts nor any share of its time: only the best
that the line has carried for a while.
"""

from collections import defaultdict, deque
from collections.abc import Mapping
from itertools import count
from math import floor
from typing import Final

from atoll.units import KIB

_BINS_PER_S: Final = 16
_LEAST_BINS: Final = 4  # of a window, a quarter of a second: queues hold 50 to 100 ms
_MOST_BINS: Final = 32  # of a window that has enough for us: two seconds
_PART: Final = 1 / 3  # of a round's bytes, if that takes no more: short windows mislead
_LEAST_BYTES: Final = 512 * KIB  # of a window, however few flows there are
_FLOW_BYTES: Final = 256 * KIB  # of a window, for each flow: four times what a buffer swallows
_ROUNDS: Final = 2  # that count: a line that breaks down is noticed when they are over


def best_rate(bin_bytes: Mapping[int, float], *, least_bytes: float) -> float | None:
    """Return the bytes per second of the fastest window; None: all together is too little for one.

    `bin_bytes` says what was moved in each bin of busy time. A window has so many bins that neither
    queues nor buffers make much of what it holds: `least_bytes`, and if two seconds are enough a
    third of all. (The more windows there are, the likelier is one in which queues let go what a
    stall had held.) A longer one is no faster than its fastest part, so for each end the shortest
    will do.
    """
    best: float | None = None
    much_bytes = max(least_bytes, _PART * sum(bin_bytes.values()))
    window: deque[float] = deque()
    held_bytes = 0.0

    def enough_bytes(num_bins: int) -> float:
        return least_bytes if num_bins >= _MOST_BINS else much_bytes

    for index in range(min(bin_bytes, default=0), max(bin_bytes, default=-1) + 1):
        window.append(bin_bytes.get(index, 0.0))
        held_bytes += window[-1]
        while len(window) > _LEAST_BINS and held_bytes - window[0] >= enough_bytes(len(window) - 1):
            held_bytes -= window.popleft()
        if len(window) >= _LEAST_BINS and held_bytes >= enough_bytes(len(window)):
            best = max(best or 0.0, held_bytes * _BINS_PER_S / len(window))
    return best


class LineRate:
    """The rate of our line in one direction, over all connections: the best of the last rounds."""

    def __init__(self) -> None:
        self.is_sure = False  # the last round was long enough for a window, not a mean of all
        self._busy_s = 0.0  # up to `_since`, if something is under way, else up to now
        self._since = 0.0
        self._under_way = 0
        self._round_began_s = 0.0  # in busy time, as all that follows
        self._most_flows = 1
        self._moved_bytes = 0.0
        self._bin_bytes: defaultdict[int, float] = defaultdict(float)
        self._rates: deque[float] = deque(maxlen=_ROUNDS)

    @property
    def estimate(self) -> float | None:
        """Bytes per second, or None while nobody knows."""
        return max(self._rates, default=None)

    @property
    def under_way(self) -> int:
        """How many transfers have begun and not ended."""
        return self._under_way

    def begin(self, now: float) -> float:
        """Count a transfer as under way from now on; return its begin in busy time, for `end`."""
        if not self._under_way:
            self._since = now
        self._under_way += 1
        self._most_flows = max(self._most_flows, self._under_way)
        return self._busy_until(now)

    def end(self, began_s: float, *, now: float, num_bytes: int) -> float:
        """Count the transfer as over, and as many bytes as moved since that begin.

        Return its end in busy time.
        """
        ended_s = self._busy_until(now)
        self._busy_s, self._since = ended_s, now
        self._under_way -= 1
        # What it moved before this round is none of it.
        first_s = max(began_s, self._round_began_s)
        share = (ended_s - first_s) / (ended_s - began_s) if ended_s > began_s else 1.0
        self._spread(share * num_bytes, first_s, ended_s)
        return ended_s

    def end_round(self) -> float | None:
        """Begin a new round; return the rate of the one before.

        None: it has moved too little to say anything. Then it goes on.
        """
        busy_s = self._busy_s - self._round_began_s  # up to the last end of a transfer
        least_bytes = max(_LEAST_BYTES, self._most_flows * _FLOW_BYTES)
        is_long = busy_s * _BINS_PER_S >= _LEAST_BINS
        if busy_s <= 0 or not self._moved_bytes:
            return None
        if not is_long and self._moved_bytes < least_bytes:
            return None
        window = best_rate(self._bin_bytes, least_bytes=least_bytes) if is_long else None
        self.is_sure = window is not None
        rate = window or self._moved_bytes / busy_s
        self._rates.append(rate)
        self._round_began_s = self._busy_s
        self._most_flows = max(1, self._under_way)
        self._moved_bytes = 0.0
        self._bin_bytes.clear()
        return rate

    def _busy_until(self, now: float) -> float:
        return self._busy_s + (now - self._since if self._under_way else 0.0)

    def _spread(self, num_bytes: float, first_s: float, last_s: float) -> None:
        """Note what was moved, evenly over that time."""
        self._moved_bytes += num_bytes
        if not num_bytes:
            return
        begin, end = first_s * _BINS_PER_S, last_s * _BINS_PER_S
        if floor(begin) == floor(end):
            self._bin_bytes[floor(begin)] += num_bytes
            return
        for index in count(floor(begin)):
            overlap = min(end, index + 1) - max(begin, index)
            if overlap <= 0:
                return
            self._bin_bytes[index] += num_bytes * overlap / (end - begin)
