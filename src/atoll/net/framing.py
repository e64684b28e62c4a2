"""Messages and payloads in a stream of bytes, without any I/O.

    | 4 bytes: length | message | 4 bytes: length | message | payload ... | 4 bytes: ...

The length is big-endian, and that of the message alone. How long a payload is stands in the message
before it. Whoever reads says which of the two comes next, and payload bytes go where they stay.
"""

import struct

from atoll.errors import ProtocolError
from atoll.net import wire
from atoll.units import KIB

_LENGTH = struct.Struct(">I")
_SMALLEST = 16 * KIB  # of the buffer for messages; larger only while a larger message arrives


def frame(message: wire.Message) -> bytes:
    """Return the message with its length in front."""
    body = wire.encode(message)
    assert len(body) <= wire.MAX_MESSAGE_BYTES, f"{type(message).__name__}: {len(body)} bytes"
    return _LENGTH.pack(len(body)) + body


class Inbox:
    """What has arrived: fill `room()`, say how much with `filled`, and take things out.

    `limit_bytes` bounds a message, and is checked as soon as the length is there.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._buffer = bytearray(_SMALLEST)
        self._start = 0  # of the bytes not taken yet
        self._end = 0
        self.payload_left = 0  # bytes of the expected payload that are still to come
        self._payload = memoryview(b"")  # where they go

    def room(self) -> memoryview:
        """Return where the next bytes go; empty: something must be taken out first."""
        if self.payload_left:
            return self._payload
        if self._end == len(self._buffer) and self._start:
            self._move(len(self._buffer))
        return memoryview(self._buffer)[self._end :]

    def filled(self, num_bytes: int) -> None:
        """Note that the first `num_bytes` of `room()` hold bytes that arrived."""
        if self.payload_left:
            self.payload_left -= num_bytes
            self._payload = self._payload[num_bytes:]
        else:
            self._end += num_bytes

    def take_message(self) -> wire.Message | None:
        """Return the next message, or None if it is not all there yet.

        Raises:
            ProtocolError: what comes next is no message, or too long a one.
        """
        available = self._end - self._start
        if available < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if length > self.limit_bytes:
            raise ProtocolError(f"a message of {length} bytes, where {self.limit_bytes} may come")
        whole = _LENGTH.size + length
        if available < whole:
            if available == len(self._buffer):  # it grows as bytes come, not as others say
                self._move(min(whole, 2 * available))
            return None
        body = memoryview(self._buffer)[self._start + _LENGTH.size : self._start + whole]
        message = wire.decode(body, limit_bytes=self.limit_bytes)
        self._start += whole
        if self._start == self._end and len(self._buffer) > _SMALLEST:
            self._move(_SMALLEST)
        return message

    def expect_payload(self, payload: memoryview) -> None:
        """Say that the next bytes belong there; no message is taken before `payload_left` is 0."""
        num_here = min(len(payload), self._end - self._start)
        stop = self._start + num_here
        payload[:num_here] = memoryview(self._buffer)[self._start : stop]
        self._start = stop
        self._payload = payload[num_here:]
        self.payload_left = len(self._payload)

    def _move(self, num_bytes: int) -> None:
        """Move what was not taken to the front of a buffer of this size."""
        buffer = bytearray(num_bytes)
        num_left = self._end - self._start
        buffer[:num_left] = memoryview(self._buffer)[self._start : self._end]
        self._buffer, self._start, self._end = buffer, 0, num_left
