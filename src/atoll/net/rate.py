"""What a transport sends and receives, and how much of it a user allows in a second.

A limit is on what crosses the link: payload and messages, and the headers around them.
"""

import math
from dataclasses import dataclass
from typing import Final

from atoll.units import KIB

_BURST_S = 0.015  # what may be saved up while nothing is sent
_PIECE_S = 0.004  # of the link's time, for one piece: each download may be one ahead

_RECORD_BYTES, _RECORD_HEADER = 16 * KIB, 22  # TLS 1.3: header 5, content type 1, tag 16
_PACKET_BYTES, _PACKET_HEADER = 1448, 52  # of 1500: IPv4 20, TCP 20, its time stamps 12


def on_the_wire(num_bytes: int) -> int:
    """Return the bytes that these are with the headers of TLS, TCP and IPv4: 3.7 % more, at best.

    Ethernet's own headers (another 1 %) and the acknowledgements of the other direction are not in.
    """
    records = num_bytes + _RECORD_HEADER * -(-num_bytes // _RECORD_BYTES)
    return records + _PACKET_HEADER * -(-records // _PACKET_BYTES)


HEADERS: Final = on_the_wire(2**24) / 2**24  # times what is sent, for a long payload


class RateLimit:
    """A token bucket that several connections draw from; 0 bytes per second: no limit.

    It is kept as the moment at which what was taken will have flowed in, so it needs no timer.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.is_none = not bytes_per_s
        self._bytes_per_s = bytes_per_s
        self._paid_at = -math.inf

    def spend(self, num_bytes: int, *, now: float) -> float:
        """Take so many bytes and their headers; return the seconds until they are paid for."""
        if self.is_none:
            return 0.0
        seconds = on_the_wire(num_bytes) / self._bytes_per_s
        self._paid_at = max(self._paid_at, now - _BURST_S) + seconds
        return max(0.0, self._paid_at - now)

    def piece_bytes(self, largest: int) -> int:
        """Return how much to move at once, so that a slow link stays smooth: 4 ms of it."""
        if self.is_none:
            return largest
        return min(largest, max(KIB, int(self._bytes_per_s * _PIECE_S)))


@dataclass(kw_only=True)
class Meter:
    """What the connections of one transport share: its limits, and counts since its start."""

    upload: RateLimit  # what a user allows
    download: RateLimit
    pace: RateLimit  # what the line upwards is thought to carry
    num_sent: int = 0  # bytes of messages and payloads, before TLS
    num_received: int = 0
    num_confirmed: int = 0  # bytes after TLS, on connections that have ended
