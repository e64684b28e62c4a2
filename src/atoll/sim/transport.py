"""The `Transport` of `atoll.net.transport` on the network of a simulation.

Messages cross it as the bytes that they are on a real one, and whoever does not read soon gets no
more. Who is at the other end is known instead of proved: TLS has tests of its own.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from atoll.errors import ConnectionLost, PeerError, ProtocolError, RunError
from atoll.ids import Buffer, PeerId
from atoll.net import wire
from atoll.net.connection import CLOSE_S
from atoll.net.listener import bug_in
from atoll.net.transport import Serve
from atoll.sim.loop import Process
from atoll.sim.network import BURST_BYTES, Flow, Harm, Machine, Network, Pace, Path
from atoll.units import KIB, MIB

WINDOW_BYTES: Final = MIB  # that somebody has not read yet: then whoever sends to it waits
LENGTH_BYTES: Final = 4  # in front of each message
FIRST_PORT: Final = 40_000
FOREVER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class _Payload:
    content: bytes


@dataclass(frozen=True, slots=True)
class _End:
    reason: str


class SimTransport:
    """What one process of a machine has of the network. `peer` None: a stranger who enrols."""

    def __init__(
        self, network: Network, machine: Machine, process: Process, peer: PeerId | None
    ) -> None:
        self.network = network
        self.machine = machine
        self.process = process
        self.peer = peer
        self.num_sent = 0
        self.num_received = 0
        self.listeners: list[SimListener] = []
        self.connections: dict[SimConnection, None] = {}

    async def dial(
        self, host: str, port: int, *, expect: PeerId | None, timeout_s: float
    ) -> "SimConnection":
        where = f"{host}:{port}"
        machine = self.network.machines.get(host)
        if machine is None:
            raise ConnectionLost(f"{where}: the name has no address")
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connected(machine, port)
        except TimeoutError as error:
            raise ConnectionLost(f"{where} does not answer in time") from error
        if expect is not None and connection.peer != expect:
            await connection.close()
            raise PeerError(f"{where} is peer {connection.peer}, not {expect}")
        return connection

    async def _connected(self, machine: Machine, port: int) -> "SimConnection":
        network = self.network
        is_there = machine is self.machine or not machine.link.nat
        await network.until_reached(self.machine, machine)
        # One round trip for TCP, one for TLS 1.3.
        round_trips_s = [network.latency_s(self.machine, machine) for _ in range(4)]
        await asyncio.sleep(sum(round_trips_s) if is_there else FOREVER_S)
        listener = network.listeners.get((machine.name, port))
        if listener is None:
            raise ConnectionLost(f"nothing listens on {machine.name}:{port}")
        connection = await listener.accept(self)
        if network.tells_round_trips:
            connection.round_trip_s = sum(round_trips_s[:2])
        return connection

    async def listen(self, serve: Serve, *, host: str, port: int) -> "SimListener":
        network, name = self.network, self.machine.name
        if not port:
            port = FIRST_PORT
            while (name, port) in network.listeners:
                port += 1
        if (name, port) in network.listeners:
            raise RunError(f"port {port} is taken on {host}")
        listener = SimListener(self, port, serve)
        network.listeners[name, port] = listener
        self.listeners.append(listener)
        return listener

    @property
    def backs_off(self) -> bool:
        """A flow has its part of the line at once, however far it goes."""
        return False

    @property
    def num_confirmed(self) -> None:
        """Nothing lies in buffers here: what was sent has passed the line."""

    def pace(self, bytes_per_s: float) -> None:
        self.machine.pace_bytes_per_s = max(bytes_per_s, KIB)
        self.network.share_out_soon()

    def die(self) -> None:
        """End all connections as the kernel does for a process that is gone."""
        for listener in self.listeners:
            listener.forget()
        for connection in list(self.connections):
            connection.die()


class SimListener:
    def __init__(self, transport: SimTransport, port: int, serve: Serve) -> None:
        self.port = port
        self._transport = transport
        self._serve = serve
        self._conversations: dict[asyncio.Task[None], None] = {}

    async def accept(self, dialler: SimTransport) -> "SimConnection":
        """Return the dialler's end, once this process has come to answer."""
        answered: asyncio.Future[SimConnection] = asyncio.get_running_loop().create_future()
        answering = self._transport.process.spawn(self._answer(dialler, answered))
        self._conversations[answering] = None
        answering.add_done_callback(lambda task: self._conversations.pop(task, None))
        return await answered

    async def _answer(
        self, dialler: SimTransport, answered: "asyncio.Future[SimConnection]"
    ) -> None:
        if answered.done():
            return  # whoever dialled has given up
        theirs, ours = pair(dialler, self._transport)
        answered.set_result(theirs)
        try:
            await self._serve(ours)
        except Exception as error:  # noqa: BLE001 - as the real listener does
            if bug := bug_in(error):
                context = {"message": "serving a connection failed", "exception": bug}
                asyncio.get_running_loop().call_exception_handler(context)
        finally:
            await ours.close()

    def forget(self) -> None:
        """Let nobody dial this any more."""
        self._transport.network.listeners.pop((self._transport.machine.name, self.port), None)

    async def close(self) -> None:
        self.forget()
        await asyncio.sleep(0)
        for conversation in list(self._conversations):
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)


class SimConnection:
    """One end of a connection; `peer` is who is at the other one."""

    def __init__(self, transport: SimTransport, other: SimTransport) -> None:
        self.peer = other.peer
        self.remote_host = other.machine.name
        self.round_trip_s: float | None = None
        self.other: SimConnection  # the other end
        self._transport = transport
        self._remote = other.machine
        self._path: Path
        self._inbox: deque[bytes | _Payload] = deque()
        self._unread_bytes = 0  # on their way to us, or here
        self._end = ""
        self._is_closed = False
        self._news = asyncio.Event()  # something has arrived, or the end
        self._room = asyncio.Event()  # the other end has read, or is gone
        self._sending = asyncio.Lock()
        self._pace = Pace()
        self._flow: Flow | None = None
        transport.connections[self] = None
        machine = transport.machine
        machine.most_connections = max(machine.most_connections, len(transport.connections))

    # --- what a member does with it -------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return not self._end

    async def send(self, message: wire.Message, payload: Buffer = b"") -> None:
        async with self._sending:
            with self._cut_if_cancelled():
                await self._until_there_is_room()
                await self._send(message, bytes(payload))

    async def receive(self) -> wire.Message:
        item = await self._take()
        if isinstance(item, _Payload):
            raise ProtocolError("a payload where a message was due")
        limit = wire.MAX_STRANGER_BYTES if self.peer is None else wire.MAX_MESSAGE_BYTES
        return wire.decode(item, limit_bytes=limit)

    async def receive_payload(self, num_bytes: int, into: bytearray | None = None) -> bytearray:
        content = b""
        if num_bytes:
            with self._cut_if_cancelled():
                item = await self._take()
            if not isinstance(item, _Payload) or len(item.content) != num_bytes:
                raise ProtocolError("a payload of another length than was announced")
            content = item.content
        if into is None:
            return bytearray(content)
        into[:] = content
        return into

    def pace(self, bytes_per_s: float) -> None:
        self._pace.bytes_per_s = max(bytes_per_s, KIB)
        self._transport.network.share_out_soon()

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._path.put(_End("the other side closed the connection"))
            self._finish("the connection was closed here")
            round_trip_s = 2 * self._transport.network.latency_s(
                self._transport.machine, self._remote
            )
            await asyncio.sleep(min(CLOSE_S, round_trip_s))

    # --- what happens to it ---------------------------------------------------------------------

    def cut(self, reason: str = "the connection broke") -> None:
        """Break the connection, with all that is on its way."""
        for end in (self, self.other):
            end._path.close()
            end._inbox.clear()
            end._finish(reason)

    def die(self) -> None:
        """Our process is gone: what it has sent still arrives, and the end, if its kernel lives."""
        if not self._transport.machine.is_up:
            self._path.close()
        elif not self._end:
            self._path.put(_End("the connection broke"))
        self._finish("its process is dead")

    def arrived(self, item: object) -> None:
        """Take in what came out of the path to us."""
        if self._end:
            if not isinstance(item, _End):
                self.other._finish("the connection broke: nobody is there any more")
            return
        if isinstance(item, _End):
            self._finish(item.reason)
            return
        assert isinstance(item, bytes | _Payload)
        self._inbox.append(item)
        self._news.set()

    # --- the rest -------------------------------------------------------------------------------

    async def _until_there_is_room(self) -> None:
        while not self._end and self.other._unread_bytes > WINDOW_BYTES:
            self._room.clear()
            await self._room.wait()
        self._check()

    async def _send(self, message: wire.Message, payload: bytes) -> None:
        transport, network = self._transport, self._transport.network
        body = wire.encode(message)
        assert len(body) <= wire.MAX_MESSAGE_BYTES, f"{type(message).__name__}: {len(body)} bytes"
        tampering = network.tamper(transport.machine, self._remote, message)
        harm = None if tampering is None else tampering.harm
        if harm is Harm.LOSE:
            self.cut(f"the connection broke: a {type(message).__name__} was lost")
            self._check()
        if harm is Harm.CORRUPT and payload:
            payload = bytes([payload[0] ^ 1]) + payload[1:]
        elif harm is Harm.CORRUPT:
            body = b"\xc1" + body[1:]  # the one byte that begins nothing in msgpack
        late_s = tampering.seconds if tampering is not None and harm is Harm.DELAY else 0.0
        for _ in range(2 if harm is Harm.REPEAT else 1):
            self._put(body, len(body), late_s=late_s)
            transport.num_sent += LENGTH_BYTES + len(body)
            if payload:
                await self._stream(payload)

    async def _stream(self, payload: bytes) -> None:
        """Send a payload, and return when nearly all of it has left."""
        transport, network = self._transport, self._transport.network
        if transport.machine is self._remote:
            transport.num_sent += len(payload)
            self._put(_Payload(payload), len(payload))
            return
        if len(payload) <= BURST_BYTES:
            ends = transport.machine, self._remote
            await asyncio.sleep(network.burst_s(*ends, len(payload), pace=self._pace))
        else:
            await self._flow_through(payload)
        self._check()
        transport.num_sent += len(payload)
        self._put(_Payload(payload), len(payload))

    async def _flow_through(self, payload: bytes) -> None:
        transport, network = self._transport, self._transport.network
        flow = network.flow(transport.machine, self._remote, len(payload), pace=self._pace)
        self._flow = flow
        try:
            await flow.done
        finally:
            self._flow = None
            network.drop(flow)

    def _put(self, item: bytes | _Payload, num_bytes: int, *, late_s: float = 0.0) -> None:
        self.other._unread_bytes += num_bytes
        self._path.put(item, late_s=late_s)

    async def _take(self) -> bytes | _Payload:
        while not self._inbox:
            self._check()
            self._news.clear()
            await self._news.wait()
        if self._is_closed:
            self._check()
        item = self._inbox.popleft()
        is_payload = isinstance(item, _Payload)
        num_bytes = len(item.content) if isinstance(item, _Payload) else len(item)
        self._unread_bytes -= num_bytes
        self._transport.num_received += num_bytes + (0 if is_payload else LENGTH_BYTES)
        if self._unread_bytes <= WINDOW_BYTES:
            self.other._room.set()
        return item

    @contextmanager
    def _cut_if_cancelled(self) -> Iterator[None]:
        """As a real connection does: what came next would be taken for the rest."""
        try:
            yield
        except asyncio.CancelledError:
            self.cut("a transfer was cancelled half-way")
            raise

    def _check(self) -> None:
        if self._end:
            raise ConnectionLost(self._end)

    def _finish(self, end: str) -> None:
        self._end = self._end or end
        self._transport.connections.pop(self, None)
        if self._flow is not None:
            self._transport.network.drop(self._flow)
        self._news.set()
        self._room.set()


def pair(one: SimTransport, other: SimTransport) -> tuple[SimConnection, SimConnection]:
    """Return the two ends of a new connection; the first belongs to `one`."""
    ends = SimConnection(one, other), SimConnection(other, one)
    for end, far in (ends, ends[::-1]):
        end.other = far
        end._path = Path(one.network, end._transport.machine, far._transport.machine, far.arrived)
    return ends
