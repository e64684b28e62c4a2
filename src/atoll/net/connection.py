"""One TLS connection to another member: messages and payloads, with back-pressure both ways.

send:    message, payload --pieces, rate limit, drain--> TLS --> socket
receive: socket --> TLS --> Inbox (payload bytes land where they stay) --> message, payload
"""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

from atoll.errors import ConnectionLost
from atoll.ids import Buffer
from atoll.net.framing import Inbox, frame
from atoll.net.rate import RateLimit
from atoll.net.tls import proven_peer
from atoll.net.wire import MAX_MESSAGE_BYTES, MAX_STRANGER_BYTES, Message
from atoll.units import KIB, MIB

CLOSE_S = 1.0  # for the last bytes and the goodbye of TLS; then the connection is cut
_PIECE_BYTES = 256 * KIB  # of a payload: between two of them, others get their turn
_UNSENT_BYTES = MIB  # more than this in our buffers: the sender waits


class Stream(asyncio.BufferedProtocol):
    """The asyncio side of a connection: fills an inbox, and says when to wait."""

    def __init__(self, *, download: RateLimit) -> None:
        self.inbox = Inbox(limit_bytes=MAX_STRANGER_BYTES)
        self.end: ConnectionLost | None = None  # why nothing more will come or go, once it is so
        self.changed = asyncio.Event()  # bytes have arrived, or the end
        self.writable = asyncio.Event()
        self.closed = asyncio.Event()
        self._download = download
        self._throttled = False
        self._reading = True
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "used before the connection was made"
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        self.writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self.inbox.room()

    def buffer_updated(self, nbytes: int) -> None:
        self.inbox.filled(nbytes)
        wait_s = self._download.spend(nbytes, now=self._loop.time())
        if wait_s:
            self._throttled = True
            self._loop.call_later(wait_s, self._unthrottle)
        self.control_reading()
        self.changed.set()

    def eof_received(self) -> None:
        self.finish(ConnectionLost("the other side closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish(_why_lost(exc))
        self.closed.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def control_reading(self) -> None:
        """Read on, or stop for a while: there is no room, or more arrived than the limit allows."""
        reading = len(self.inbox.room()) > 0 and not self._throttled
        if reading == self._reading:
            return
        self._reading = reading
        if reading:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def finish(self, end: ConnectionLost) -> None:
        """Wake whoever waits: nothing more will come or go."""
        self.end = self.end or end
        self.changed.set()
        self.writable.set()

    def cut(self, why: str) -> None:
        """End the connection now, whatever is on its way."""
        self.finish(ConnectionLost(why))
        self.transport.abort()

    def check(self) -> None:
        """Raise ConnectionLost if the connection is at its end."""
        if self.end is not None:  # a copy: one error raised in two tasks would mix their traces
            raise ConnectionLost(str(self.end), hint=self.end.hint)

    def _unthrottle(self) -> None:
        self._throttled = False
        self.control_reading()


class TcpConnection:
    """A `Connection` over TLS. One task receives at a time; any number may send.

    `certificate` (DER) is the one whose key the other side proved to hold; empty: it showed none.
    `peer` is its owner; None: our run's authority has not vouched for it.
    """

    def __init__(self, stream: Stream, *, upload: RateLimit) -> None:
        tls: ssl.SSLObject = stream.transport.get_extra_info("ssl_object")
        vouched = tls.context.verify_mode is not ssl.CERT_NONE
        self.certificate = tls.getpeercert(binary_form=True) or b""
        self.peer = proven_peer(self.certificate) if vouched and self.certificate else None
        # An IPv6 socket shows an IPv4 address in this form.
        remote: str = stream.transport.get_extra_info("peername", ("",))[0]
        self.remote_host = remote.removeprefix("::ffff:")
        if self.peer is not None:
            stream.inbox.limit_bytes = MAX_MESSAGE_BYTES
        # asyncio has switched Nagle's algorithm off by itself.
        raw: socket.socket = stream.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._stream = stream
        self._upload = upload
        self._sending = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return self._stream.end is None

    async def send(self, message: Message, payload: Buffer = b"") -> None:
        """Send the message and the raw bytes that it announces, with nothing in between.

        Cancelled half-way, it cuts the connection: what came next would be taken for the rest.

        Raises:
            ConnectionLost: the other side is gone.
        """
        async with self._sending:
            with self._cut_if_cancelled():
                head = frame(message)
                self._upload_wait_s(head)  # a message never waits behind payloads, but counts
                await self._write(head)
                for piece in self._pieces(payload):
                    await asyncio.sleep(self._upload_wait_s(piece))  # 0: others get their turn
                    await self._write(piece)

    async def receive(self) -> Message:
        """Return the next message. Cancelled, as by a deadline, it loses nothing.

        Raises:
            ConnectionLost: the other side is gone.
            ProtocolError: what came is no message, or too long a one.
        """
        while (message := self._stream.inbox.take_message()) is None:
            await self._more()
        return message

    async def receive_payload(self, num_bytes: int) -> bytearray:
        """Return the raw bytes that the last message announced; the caller has judged how many.

        Cancelled, it cuts the connection: nobody could tell where the next message starts.

        Raises:
            ConnectionLost: the other side is gone.
        """
        self._stream.inbox.expect_payload(num_bytes)
        with self._cut_if_cancelled():
            while (payload := self._stream.inbox.take_payload()) is None:
                await self._more()
        return payload

    async def close(self) -> None:
        """End the connection once what was sent is out; a frozen other side delays that little."""
        self._stream.finish(ConnectionLost("the connection was closed here"))
        self._stream.transport.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._stream.closed.wait()
        finally:
            self._stream.transport.abort()
        await self._stream.closed.wait()

    async def _more(self) -> None:
        """Wait until something else has arrived."""
        self._stream.check()
        self._stream.changed.clear()
        self._stream.control_reading()
        await self._stream.changed.wait()

    async def _write(self, piece: Buffer) -> None:
        await self._stream.writable.wait()
        self._stream.check()
        self._stream.transport.write(piece)

    def _pieces(self, payload: Buffer) -> Iterator[memoryview]:
        view = memoryview(payload).cast("B")
        step = self._upload.piece_bytes(_PIECE_BYTES)
        return (view[start : start + step] for start in range(0, len(view), step))

    def _upload_wait_s(self, piece: Buffer) -> float:
        return self._upload.spend(len(piece), now=asyncio.get_running_loop().time())

    @contextmanager
    def _cut_if_cancelled(self) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            self._stream.cut("a transfer was cancelled half-way")
            raise


def _why_lost(exc: Exception | None) -> ConnectionLost:
    if exc is None:
        return ConnectionLost("the connection is closed")
    return ConnectionLost(f"the connection broke: {exc}")
