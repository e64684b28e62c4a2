"""One TLS connection to another member: messages and payloads, with back-pressure both ways.

send:    message, payload --pieces, rate limit, drain--> TLS --> socket
receive: socket --> TLS --> Inbox (payload bytes land where they stay) --> message, payload

The TLS is ours to drive (`net.tls.Tls`) on asyncio's plain TCP, which every event loop has. What
arrives is decrypted when somebody wants it: at once into a payload that is expected, otherwise when
a task asks for the next message. What nobody wants stays encrypted, and soon reading stops.
"""

import asyncio
import socket
import ssl
from contextlib import suppress
from math import isfinite
from typing import cast

from atoll import system
from atoll.errors import ConnectionLost
from atoll.ids import Buffer
from atoll.net.framing import Inbox, frame
from atoll.net.rate import Meter, RateLimit
from atoll.net.tls import Tls, proven_peer
from atoll.net.wire import MAX_MESSAGE_BYTES, MAX_STRANGER_BYTES, Message
from atoll.units import KIB

CLOSE_S = 1.0  # for the last bytes and the goodbye of TLS; then the connection is cut
_PIECE_BYTES = 512 * KIB  # sent at once: between two of them, others get their turn
_ARRIVAL_BYTES = 256 * KIB  # read at once
_SMALL_BYTES = 16 * KIB  # the same, on a connection that has never carried a payload
_TURN_BYTES = 16 * KIB  # less than that waits until the turn of the loop is over
_HELD_BYTES = 256 * KIB  # of what nobody has asked for yet: when it is more, reading stops
_HALF_WAY = "a transfer was cancelled half-way"


class Stream(asyncio.BufferedProtocol):
    """The asyncio side of a connection: TLS, an inbox to fill, and when to wait."""

    def __init__(self, tls: Tls, *, meter: Meter) -> None:
        self.tls = tls
        self.inbox = Inbox(limit_bytes=MAX_STRANGER_BYTES)
        self.end: ConnectionLost | None = None  # why nothing more will come or go, once it is so
        self.changed = asyncio.Event()  # what a receiver waits for may be there, or the end is
        self.writable = asyncio.Event()
        self.closed = asyncio.Event()
        self._meter = meter
        self._arrival = memoryview(bytearray(_SMALL_BYTES))
        self._throttled = False
        self._reading = True
        self._leaves_soon = False  # what was written is sent at the end of this turn of the loop
        self._discarding = False
        self._loop = asyncio.get_running_loop()
        self._handshake: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "used before the connection was made"
        return self._transport

    async def shake_hands(self) -> None:
        """Wait until both sides have proved their keys; if they do not, cut the connection.

        Raises:
            OSError: the other side went away, or (ssl.SSLError) is none of us.
        """
        try:
            await self._handshake
        except BaseException:
            self.transport.close()  # and not abort: TLS tells the other side why
            raise

    # --- what asyncio calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.writable.set()
        self._go_on_shaking()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        if self.inbox.payload_left and len(self._arrival) < _ARRIVAL_BYTES:
            self._arrival = memoryview(bytearray(_ARRIVAL_BYTES))
        download = self._meter.download
        if download.is_none:
            return self._arrival
        return self._arrival[: download.piece_bytes(len(self._arrival))]

    def buffer_updated(self, nbytes: int) -> None:
        download = self._meter.download
        if not download.is_none and (wait_s := download.spend(nbytes, now=self._loop.time())):
            self._throttled = True
            self._loop.call_later(wait_s, self._unthrottle)
        if not self._discarding:
            self.tls.arrived(self._arrival[:nbytes])
            self._use_what_arrived()
        self.control_reading()

    def eof_received(self) -> None:
        self.finish(ConnectionLost("the other side closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._meter.num_confirmed += self.num_confirmed()
        self.finish(_why_lost(exc))
        self.closed.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    # --- what the connection calls --------------------------------------------------------------

    def num_confirmed(self) -> int:
        """Return how many bytes of ours the other side's system has; 0 once the end is known."""
        if self._transport is None or self.closed.is_set():
            return 0
        return system.num_confirmed(self._transport.get_extra_info("socket"))

    def least_round_trip_s(self) -> float | None:
        """Return the shortest round trip of the last minutes; None: nobody tells."""
        if self._transport is None or self.closed.is_set():
            return None
        return system.least_round_trip_s(self._transport.get_extra_info("socket"))

    def pull(self) -> bool:
        """Decrypt more of what has arrived, if anything; return whether that was so."""
        if self._discarding:
            return False
        if not self.tls.has_more:
            return False
        num_bytes = self._decrypt()
        self.control_reading()
        return num_bytes > 0

    def write(self, *plain: Buffer) -> None:
        """Send this, small things together with what else is written in this turn of the loop."""
        for part in plain:
            self.tls.write(part)
            self._meter.num_sent += len(part)
        if self.tls.num_departing > _TURN_BYTES:
            self._send_departing()
        elif not self._leaves_soon:
            self._leaves_soon = True
            self._loop.call_soon(self._send_departing)

    def control_reading(self) -> None:
        """Read on, or stop for a while: enough has arrived, or more than the limit allows."""
        reading = self.tls.num_held < _HELD_BYTES and not self._throttled
        if reading == self._reading or self.transport.is_closing():
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
        if not self._handshake.done():
            self._fail_handshake(ConnectionAbortedError(str(end)))

    def say_goodbye(self) -> None:
        """Send what is left, and read on until the other side has heard that this is the end.

        What still comes is thrown away: a socket closed with bytes unread would take back what
        it has not sent yet.
        """
        if self._discarding or self.transport.is_closing():
            return  # two may close a connection at once
        self.tls.say_goodbye()
        self._send_departing()
        with suppress(OSError):  # it has gone already, while we did not read
            self.transport.write_eof()
        self._discarding = True
        self.tls.discard()
        self.control_reading()

    def cut(self, why: str) -> None:
        """End the connection now, whatever is on its way."""
        self.finish(ConnectionLost(why))
        self.abort()

    def abort(self) -> None:
        if not self.closed.is_set():  # asyncio's transport is unusable once it is
            self.transport.abort()

    def check(self) -> None:
        """Raise ConnectionLost if the connection is at its end."""
        if self.end is not None:  # a copy: one error raised in two tasks would mix their traces
            raise ConnectionLost(str(self.end), hint=self.end.hint)

    # --- the rest -------------------------------------------------------------------------------

    def _use_what_arrived(self) -> None:
        if not self._handshake.done():
            self._go_on_shaking()
        if self.inbox.payload_left:
            self._decrypt()
        if not self.inbox.payload_left:  # a message is decrypted by the task that waits for it
            self.changed.set()

    def _go_on_shaking(self) -> None:
        try:
            complete = self.tls.shake_hands()
        except ssl.SSLError as error:
            self._fail_handshake(error)
        else:
            if complete:
                self._handshake.set_result(None)
        self._send_departing()

    def _fail_handshake(self, error: OSError) -> None:
        self._handshake.set_exception(error)
        self._handshake.exception()  # looked at: whoever dialled may have given up already

    def _decrypt(self) -> int:
        """Decrypt into the inbox, and return how many bytes; 0: there are none, or no room.

        One record of messages: a payload that follows goes where it stays.
        """
        room = self.inbox.room()
        if not room:
            return 0
        try:
            num_records = len(room) if self.inbox.payload_left else 1
            num_bytes = self.tls.read_into(room, num_records=num_records)
        except ssl.SSLError as error:
            self.cut(f"the connection broke: {error}")
            return 0
        if self.tls.ended:
            self.eof_received()
            self.transport.close()
        self.inbox.filled(num_bytes)
        self._meter.num_received += num_bytes
        if not self._leaves_soon:
            self._send_departing()  # the answer to a change of keys, which the other side may want
        return num_bytes

    def _send_departing(self) -> None:
        self._leaves_soon = False
        departing = self.tls.departing()
        if departing and not self.transport.is_closing():
            self.transport.write(memoryview(departing))  # a view: asyncio cuts off what has left

    def _unthrottle(self) -> None:
        self._throttled = False
        self.control_reading()


class TcpConnection:
    """A `Connection` over TLS. One task receives at a time; any number may send.

    `certificate` (DER) is the one whose key the other side proved to hold; empty: it showed none.
    `peer` is its owner; None: our run's authority has not vouched for it.
    """

    def __init__(self, stream: Stream, *, meter: Meter, dialled_in_s: float | None = None) -> None:
        """`dialled_in_s` is how long the first answer took, if we have dialled."""
        self.certificate = stream.tls.certificate
        self.peer = proven_peer(self.certificate) if stream.tls.vouched else None
        # Of one that is gone already, some systems say no address. An IPv6 socket shows an IPv4
        # address in this form.
        remote: str = (stream.transport.get_extra_info("peername") or ("",))[0]
        self.remote_host = remote.removeprefix("::ffff:")
        if self.peer is not None:
            stream.inbox.limit_bytes = MAX_MESSAGE_BYTES
        # asyncio has switched Nagle's algorithm off by itself.
        raw: socket.socket = stream.transport.get_extra_info("socket")
        with suppress(OSError):  # nor can anything be set there; what is sent next says that
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._stream = stream
        self._meter = meter
        self._dialled_in_s = dialled_in_s
        self._pacing = RateLimit(0.0)  # of this connection alone
        self._sending = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return self._stream.end is None

    @property
    def round_trip_s(self) -> float | None:
        if self._dialled_in_s is None:
            return None
        least_s = self._stream.least_round_trip_s()
        return self._dialled_in_s if least_s is None else min(least_s, self._dialled_in_s)

    async def send(self, message: Message, payload: Buffer = b"") -> None:
        """Send the message and the raw bytes that it announces, with nothing in between.

        Cancelled half-way, it cuts the connection: what came next would be taken for the rest.

        Raises:
            ConnectionLost: the other side is gone.
        """
        async with self._sending:
            try:
                await self._send(frame(message), payload)
            except asyncio.CancelledError:
                self._stream.cut(_HALF_WAY)
                raise

    async def receive(self) -> Message:
        """Return the next message. Cancelled, as by a deadline, it loses nothing.

        Raises:
            ConnectionLost: the other side is gone.
            ProtocolError: what came is no message, or too long a one.
        """
        while (message := self._stream.inbox.take_message()) is None:
            await self._more()
        return message

    async def receive_payload(self, num_bytes: int, into: bytearray | None = None) -> bytearray:
        """Return the raw bytes that the last message announced; the caller has judged how many.

        They are `into`, if it is there, which has their size: a buffer used again is faster than a
        new one.
        Cancelled, it cuts the connection: nobody could tell where the next message starts.

        Raises:
            ConnectionLost: the other side is gone.
        """
        payload = bytearray(num_bytes) if into is None else into
        assert len(payload) == num_bytes, f"{num_bytes} bytes, and room for {len(payload)}"
        inbox = self._stream.inbox
        inbox.expect_payload(memoryview(payload))
        try:
            while inbox.payload_left:
                await self._more()
        except asyncio.CancelledError:
            self._stream.cut(_HALF_WAY)
            raise
        return payload

    def pace(self, bytes_per_s: float) -> None:
        """Send no faster than that from now on, headers included."""
        self._pacing = RateLimit(bytes_per_s if isfinite(bytes_per_s) else 0.0)

    async def close(self) -> None:
        """End the connection once what was sent is out; a frozen other side delays that little."""
        self._stream.finish(ConnectionLost("the connection was closed here"))
        self._stream.say_goodbye()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._stream.closed.wait()
        finally:
            self._stream.abort()
        await self._stream.closed.wait()

    async def _more(self) -> None:
        """Wait until something else has arrived."""
        if self._stream.pull():
            return
        self._stream.check()
        self._stream.changed.clear()
        await self._stream.changed.wait()

    async def _send(self, head: bytes, payload: Buffer) -> None:
        stream = self._stream
        self._upload_wait_s(head)  # a message never waits behind payloads, but counts
        if not payload:
            await stream.writable.wait()
            stream.check()
            stream.write(head)
            return
        view = memoryview(payload).cast("B")
        steps = (limit.piece_bytes(_PIECE_BYTES) for limit in self._upload_limits())
        step = min(steps, default=_PIECE_BYTES)
        for start in range(0, len(view), step):
            piece = view[start : start + step]
            # Whoever cannot send now takes nothing of what the others may send meanwhile.
            await stream.writable.wait()
            await asyncio.sleep(self._upload_wait_s(piece))  # 0: others get their turn
            await stream.writable.wait()
            stream.check()
            if start:
                stream.write(piece)
            else:
                stream.write(head, piece)
        # It has nearly left when we return, so whose turn is next may send.
        await stream.writable.wait()

    def _upload_wait_s(self, piece: Buffer) -> float:
        """Take the piece from all limits; return the seconds until it is paid for."""
        limits = self._upload_limits()
        if not limits:
            return 0.0
        now, num_bytes = asyncio.get_running_loop().time(), len(piece)
        return max([limit.spend(num_bytes, now=now) for limit in limits])

    def _upload_limits(self) -> list[RateLimit]:
        limits = self._meter.upload, self._meter.pace, self._pacing
        return [limit for limit in limits if not limit.is_none]


def _why_lost(exc: Exception | None) -> ConnectionLost:
    if exc is None:
        return ConnectionLost("the connection is closed")
    why = (exc.strerror if isinstance(exc, OSError) else None) or exc  # without the number
    return ConnectionLost(f"the connection broke: {why}")
