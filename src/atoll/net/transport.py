"""The seam between the protocol and the network: tests and the simulator bring their own.

    Transport.dial / .listen --> Connection: send, receive, receive_payload, close

`TcpTransport` is the real one: TCP and TLS 1.3 on asyncio. Its errors name address and port.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from math import isfinite
from typing import Protocol, TypeAlias
from weakref import WeakSet

from atoll import system
from atoll.errors import ConnectionLost, PeerError, RunError
from atoll.ids import Buffer, PeerId
from atoll.net.connection import Stream, TcpConnection
from atoll.net.identity import Identity
from atoll.net.listener import Limits, TcpListener
from atoll.net.rate import HEADERS, Meter, RateLimit
from atoll.net.tls import Tls, client_context, server_context
from atoll.net.wire import Message
from atoll.units import KIB

_BACKLOG = 1024  # a host that starts again is dialled by all its peers at once
_UNSENT_BYTES = 64 * KIB  # in the kernel: more would leave later than `send` says, and later news


class Connection(Protocol):
    """Two members talk. Every wait takes its deadline from the caller (`asyncio.timeout`).

    `peer` is who the other side proved to be; None: a stranger, or, to one who enrols, the host.
    `round_trip_s` is the shortest time in which the other side's system has answered ours, as far
    as is known: when we dialled, or since. (A first answer may have stood in the queue of a busy
    line.) None: it is not known, as of connections that others have dialled.
    """

    peer: PeerId | None
    remote_host: str

    @property
    def round_trip_s(self) -> float | None: ...

    @property
    def is_open(self) -> bool:
        """Whether, as far as is known here, something can still be sent."""
        ...

    async def send(self, message: Message, payload: Buffer = b"") -> None: ...

    async def receive(self) -> Message: ...

    async def receive_payload(self, num_bytes: int, into: bytearray | None = None) -> bytearray: ...

    def pace(self, bytes_per_s: float) -> None:
        """Send no faster than that from now on, as far as the system can."""
        ...

    async def close(self) -> None: ...


class Listener(Protocol):
    port: int

    async def close(self) -> None: ...


Serve: TypeAlias = Callable[[Connection], Awaitable[None]]


class Transport(Protocol):
    """`num_sent`, `num_received`: bytes of messages and payloads, over all connections so far.

    `num_confirmed`: bytes that the others' systems have, TLS included, over all connections so far;
    None: ours does not tell. `backs_off`: a lost packet makes a flow of ours slower, as with all
    ways to control congestion but BBR.
    """

    @property
    def backs_off(self) -> bool: ...

    @property
    def num_confirmed(self) -> int | None: ...

    def pace(self, bytes_per_s: float) -> None:
        """Send no faster than that from now on, over all connections together; inf: as they can."""
        ...

    @property
    def num_sent(self) -> int: ...

    @property
    def num_received(self) -> int: ...

    async def dial(
        self, host: str, port: int, *, expect: PeerId | None, timeout_s: float
    ) -> Connection:
        """Return a connection to the member that listens there (`expect` None: to any member).

        Raises:
            ConnectionLost: nobody is there, or nobody answers in time.
            PeerError: somebody else than expected is there.
        """
        ...

    async def listen(self, serve: Serve, *, host: str, port: int) -> Listener:
        """Serve each connection in a task of its own, until the listener is closed.

        A connection ends when `serve` returns or raises a PeerError. Port 0 is any free one.

        Raises:
            RunError: the port is taken, or the address is not one of this machine.
        """
        ...


class TcpTransport:
    """A `Transport` over TCP with TLS 1.3, for a member, or (None) for a stranger who enrols."""

    def __init__(self, identity: Identity | None, limits: Limits | None = None) -> None:
        self._identity = identity
        self._limits = limits or Limits()
        self._client = client_context(identity)
        self._meter = Meter(
            upload=RateLimit(self._limits.upload_bytes_per_s),
            download=RateLimit(self._limits.download_bytes_per_s),
            pace=RateLimit(0.0),
        )
        self._streams: WeakSet[Stream] = WeakSet()
        self._congestion = ""  # what controls it, as the newest dial has shown

    @property
    def backs_off(self) -> bool:
        """Whether a lost packet makes a flow of ours slower."""
        return self._congestion != "bbr"

    @property
    def num_sent(self) -> int:
        """Bytes of messages and payloads, over all connections since the start."""
        return self._meter.num_sent

    @property
    def num_received(self) -> int:
        """Bytes of messages and payloads, over all connections since the start."""
        return self._meter.num_received

    @property
    def num_confirmed(self) -> int | None:
        """Bytes that the others' systems have, over all connections since the start."""
        if not system.TELLS_CONFIRMED:
            return None
        return self._meter.num_confirmed + sum(s.num_confirmed() for s in self._streams)

    def pace(self, bytes_per_s: float) -> None:
        """Send no faster than that from now on, over all connections together; inf: as they can."""
        self._meter.pace = RateLimit(bytes_per_s * HEADERS if isfinite(bytes_per_s) else 0.0)

    async def dial(
        self, host: str, port: int, *, expect: PeerId | None, timeout_s: float
    ) -> TcpConnection:
        where = f"{host}:{port}"
        stream = Stream(Tls(self._client, server_side=False), meter=self._meter)
        try:
            async with asyncio.timeout(timeout_s):
                connected, round_trip_s = await _connected(host, port, timeout_s=timeout_s)
                _tune(connected, self._limits)
                self._congestion = system.congestion_of(connected)
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: stream, sock=connected)
                await stream.shake_hands()
        except (OSError, UnicodeError) as error:
            raise _dial_error(where, error) from error
        connection = self._connection(stream, dialled_in_s=round_trip_s)
        if expect is not None and connection.peer != expect:
            await connection.close()
            message = f"{where} is peer {connection.peer}, not {expect}"
            raise PeerError(message, hint="has another member taken over its address?")
        return connection

    async def listen(self, serve: Serve, *, host: str, port: int) -> TcpListener:
        assert self._identity is not None, "a stranger listens nowhere"
        context = server_context(self._identity)

        async def answer(accepted: socket.socket) -> TcpConnection:
            _tune(accepted, self._limits)
            stream = Stream(Tls(context, server_side=True), meter=self._meter)
            async with asyncio.timeout(self._limits.handshake_s):
                loop = asyncio.get_running_loop()
                await loop.connect_accepted_socket(lambda: stream, accepted)
                await stream.shake_hands()
            return self._connection(stream)

        return TcpListener(_listening(host, port), answer=answer, serve=serve, limits=self._limits)

    def _connection(self, stream: Stream, dialled_in_s: float | None = None) -> TcpConnection:
        try:
            connection = TcpConnection(stream, meter=self._meter, dialled_in_s=dialled_in_s)
        except PeerError:
            stream.transport.abort()
            raise
        self._streams.add(stream)
        return connection


def _tune(connected: socket.socket, limits: Limits) -> None:
    """Set what the system allows; where it does not, its own ways are good enough."""
    system.limit_unsent(connected, _UNSENT_BYTES)
    if limits.congestion:
        system.choose_congestion(connected, limits.congestion)


async def _connected(host: str, port: int, *, timeout_s: float) -> tuple[socket.socket, float]:
    """Return a socket that is connected to the first address that answers, and after which time.

    Each address has an equal share of the time. (asyncio can do that by itself, but up to
    Python 3.11 it leaves the sockets open that did not connect.)
    """
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure = OSError("no address")
    for family, kind, protocol, _, address in addresses:
        connecting = socket.socket(family, kind, protocol)
        connecting.settimeout(0)
        began_at = loop.time()
        try:
            async with asyncio.timeout(timeout_s / len(addresses)):
                await loop.sock_connect(connecting, address)
        except OSError as error:
            connecting.close()
            failure = error
        except asyncio.CancelledError:
            connecting.close()
            raise
        else:
            return connecting, loop.time() - began_at
    raise failure


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on this address, or raise RunError."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        system.take_address(listening, (host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            hint = (
                "stop the process that listens there, or choose another port: --port, "
                "and for a host's built-in member --reducer-port"
            )
            raise RunError(f"port {port} is taken on {host}", hint=hint) from error
        hint = "listen on 0.0.0.0 (every address of this machine), on a port above 1023"
        raise RunError(f"cannot listen on {host}:{port}: {_reason(error)}", hint=hint) from error
    return listening


def _dial_error(where: str, error: OSError | UnicodeError) -> PeerError:
    """Return what a failed dial means, and what a person can do about it."""
    if isinstance(error, TimeoutError):
        hint = "is the port open in the firewall there, and forwarded by its router?"
        return ConnectionLost(f"{where} does not answer in time", hint=hint)
    if isinstance(error, socket.gaierror | UnicodeError):
        hint = "check the spelling, and that this machine is online"
        return ConnectionLost(f"{where}: the name has no address", hint=hint)
    if isinstance(error, ConnectionRefusedError):
        hint = "is the process there running, and is this its port?"
        return ConnectionLost(f"nothing listens on {where}", hint=hint)
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "ask the host of your run for a new invite, if its address has changed"
        return PeerError(f"{where} is no member of this run", hint=hint)
    if isinstance(error, ssl.SSLError | ConnectionAbortedError | ConnectionResetError):
        hint = "something else than atoll may listen there, or the host may be overloaded"
        return ConnectionLost(f"{where} did not complete the TLS 1.3 handshake", hint=hint)
    hint = "check the address, and that this machine is online"
    return ConnectionLost(f"{where} cannot be reached: {_reason(error)}", hint=hint)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
