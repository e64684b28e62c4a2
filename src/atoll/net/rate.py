"""A limit on bytes per second, as a user sets it for an uplink that other people use, too."""

import math

_BURST_S = 0.05  # what may be saved up while nothing is sent


class RateLimit:
    """A token bucket that several connections draw from; 0 bytes per second: no limit.

    It is kept as the moment at which what was taken will have flowed in, so it needs no timer.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._paid_at = -math.inf

    def spend(self, num_bytes: int, *, now: float) -> float:
        """Take this many bytes, and return the seconds until they are paid for: wait so long."""
        if not self._bytes_per_s:
            return 0.0
        self._paid_at = max(self._paid_at, now - _BURST_S) + num_bytes / self._bytes_per_s
        return max(0.0, self._paid_at - now)

    def piece_bytes(self, largest: int) -> int:
        """Return how much to send at once, so that a slow link stays smooth: 20 ms of it."""
        if not self._bytes_per_s:
            return largest
        return min(largest, max(1024, int(self._bytes_per_s / 50)))
