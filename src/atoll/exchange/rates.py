"""How fast our own line is, from the transfers that a run makes anyway. No probing.

    transfers   |--a--|     |---b---|                     each with its bytes
                     |--c--|     |----d----|
    stretches   |-------------------------|     |--e--|   bytes over busy seconds: Busy
    estimate    a high quantile of the rates of recent stretches: LinkRates

A stretch can be slow because a receiver is slower than we are, and short ones can look fast because
a buffer took the bytes. So the estimate is neither the mean nor the maximum.
"""

from bisect import insort
from collections.abc import Callable
from math import inf
from typing import Final

from atoll.units import KIB

_LEAST_BYTES: Final = 64 * KIB  # below that, a measurement is one of latency and buffers
_LEAST_S: Final = 0.25  # but what took so long was no buffer
_QUANTILE: Final = 0.7  # faster ones that make up less than 0.3 of the weight are bursts
_GRAIN: Final = 1 / 64  # half-lives: shorter stretches count together, so that they are few
_PATIENCE: Final = 0.25  # half-lives: the most that one stretch counts for having taken long
_FORGOTTEN: Final = 1e-6  # a weight that changes nothing any more
_MARGIN: Final = 16  # bytes that a stretch holds for each one that it may miss at its ends


class _Rate:
    """The rate of one direction, in bytes per second; None while nothing was measured."""

    def __init__(self, half_life_bytes: float) -> None:
        self._half_life_bytes = half_life_bytes
        self._bytes = 0  # of stretches that are too short to count by themselves
        self._seconds = 0.0
        self._measured: list[tuple[float, float]] = []  # rate, weight; by rate
        self.estimate: float | None = None

    def note(self, num_bytes: int, seconds: float) -> None:
        is_short = num_bytes < _LEAST_BYTES and seconds < _LEAST_S
        if is_short or not num_bytes or seconds <= 0:
            return
        self._bytes += num_bytes
        self._seconds += seconds
        due_bytes = _GRAIN * self._half_life_bytes
        if max(self._bytes, self._seconds * (self.estimate or inf)) >= due_bytes:
            self._learn(self._bytes, self._seconds)
            self._bytes, self._seconds = 0, 0.0

    def _learn(self, num_bytes: int, seconds: float) -> None:
        # A line that has become slow moves few bytes, and still has to be noticed: what it could
        # have moved in that time counts, within limits, for the receiver may have been frozen.
        possible = seconds * (self.estimate or 0.0)
        passed = max(num_bytes, min(possible, _PATIENCE * self._half_life_bytes))
        fade = 0.5 ** (passed / self._half_life_bytes)
        self._measured = [
            (rate, weight * fade) for rate, weight in self._measured if weight * fade > _FORGOTTEN
        ]
        insort(self._measured, (num_bytes / seconds, 1 - fade))
        self.estimate = self._quantile()

    def _quantile(self) -> float:
        left = _QUANTILE * sum(weight for _, weight in self._measured)
        for rate, weight in self._measured:
            left -= weight
            if left <= 0:
                return rate
        return self._measured[-1][0]  # where rounding has left a little


class LinkRates:
    """The rates of this member's line, up and down, from what it moved over all connections.

    The older half of the weight is that of the bytes before the last `half_life_bytes`. The bytes
    of a contribution are a good value: a line that breaks down is noticed within two rounds, and
    one slow receiver does not lower the estimate.
    """

    def __init__(self, *, half_life_bytes: int) -> None:
        self._up = _Rate(half_life_bytes)
        self._down = _Rate(half_life_bytes)

    @property
    def up(self) -> float | None:
        """Bytes per second that we can send, or None while nobody knows."""
        return self._up.estimate

    @property
    def down(self) -> float | None:
        return self._down.estimate

    def note_up(self, num_bytes: int, seconds: float) -> None:
        """Learn that we sent so many bytes in so many seconds; few in no time teach nothing."""
        self._up.note(num_bytes, seconds)

    def note_down(self, num_bytes: int, seconds: float) -> None:
        self._down.note(num_bytes, seconds)


class Busy:
    """Joins transfers that overlap into stretches of busy time, and tells `note` of each.

    A stretch ends when no transfer is under way, or else, so that one that hangs spoils no more,
    when it is long enough. Only transfers that lie within it count: it is never too fast.
    """

    def __init__(self, note: Callable[[int, float], None]) -> None:
        self._note = note
        self._under_way = 0
        self._since = 0.0  # begin of the stretch, and what lies within it so far
        self._num_bytes = 0
        self._largest_bytes = 0

    def begin(self, now: float) -> float:
        """Count a transfer as under way from now on; return this moment, for its `end`."""
        if not self._under_way:
            self._restart(now)
        self._under_way += 1
        return now

    def end(self, began_at: float, *, now: float, num_bytes: int) -> None:
        """Count the transfer as over, having moved so many bytes; 0 if it failed."""
        self._under_way -= 1
        if began_at >= self._since:
            self._num_bytes += num_bytes
            self._largest_bytes = max(self._largest_bytes, num_bytes)
        missed_bytes = self._under_way * self._largest_bytes
        if not self._under_way or 0 < _MARGIN * missed_bytes <= self._num_bytes:
            self._note(self._num_bytes, now - self._since)
            self._restart(now)

    def _restart(self, now: float) -> None:
        self._since = now
        self._num_bytes = 0
        self._largest_bytes = 0
