"""Memory for payloads, used again: a fresh page costs as much as the copy into it."""

from collections import defaultdict
from threading import Lock

MOST_BYTES = 2**28  # kept for later, at most


class Buffers:
    """Free buffers by size, for several threads. The slices of a fragment are of one size."""

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = defaultdict(list)
        self._free_bytes = 0
        self._lock = Lock()

    def take(self, num_bytes: int) -> bytearray:
        """Return a buffer of exactly this size, with anything in it."""
        with self._lock:
            if free := self._free[num_bytes]:
                self._free_bytes -= num_bytes
                return free.pop()
        return bytearray(num_bytes)

    def give(self, buffer: bytearray) -> None:
        """Take back a buffer that nobody uses any more."""
        with self._lock:
            if self._free_bytes + len(buffer) <= MOST_BYTES:
                self._free_bytes += len(buffer)
                self._free[len(buffer)].append(buffer)
