"""A network without sockets: the `Transport` of `atoll.net.transport`, with faults to order.

    Network --transport(peer)--> MemoryTransport --dial, listen--> MemoryConnection

Messages cross it as the bytes that they are on a real network, and a connection that is not read
from stops taking more, as a real one does.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from atoll.errors import ConnectionLost, PeerError, RunError
from atoll.ids import Buffer, PeerId
from atoll.net import wire
from atoll.net.transport import Serve

QUEUE = 32  # messages and payloads on their way in one direction
FIRST_PORT = 40_000


@dataclass
class Network:
    """Everyone's connections. The faults may change at any time."""

    unreachable: set[int] = field(default_factory=set)  # ports that nobody can dial
    stranded: set[PeerId | None] = field(default_factory=set)  # who cannot dial anybody
    delays: dict[int, float] = field(default_factory=dict)  # seconds that dialling a port takes
    damaging: set[PeerId | None] = field(default_factory=set)  # whose payloads arrive damaged
    connections: list["MemoryConnection"] = field(default_factory=list)
    listeners: dict[int, "MemoryListener"] = field(default_factory=dict)
    num_dialled: int = 0
    sent: Counter[PeerId | None] = field(default_factory=Counter)  # bytes
    received: Counter[PeerId | None] = field(default_factory=Counter)

    def transport(self, peer: PeerId | None) -> "MemoryTransport":
        return MemoryTransport(self, peer)

    @property
    def next_port(self) -> int:
        """Where the next one listens to whom any port is good."""
        return FIRST_PORT + len(self.listeners)

    def cut(self, peer: PeerId) -> None:
        """Break all connections that this member has now."""
        for connection in self.connections:
            if connection.owner == peer:
                connection.cut()


class MemoryTransport:
    def __init__(self, network: Network, peer: PeerId | None) -> None:
        self._network = network
        self.peer = peer
        self.paced: float | None = None
        self.backs_off = False

    @property
    def num_sent(self) -> int:
        return self._network.sent[self.peer]

    @property
    def num_received(self) -> int:
        return self._network.received[self.peer]

    @property
    def num_confirmed(self) -> None:
        """Nothing lies in buffers here."""

    def pace(self, bytes_per_s: float) -> None:
        """Keep what a real transport would do; nothing takes time here."""
        self.paced = bytes_per_s

    async def dial(
        self, host: str, port: int, *, expect: PeerId | None, timeout_s: float
    ) -> "MemoryConnection":
        network = self._network
        delay_s = network.delays.get(port, 0.0)
        await asyncio.sleep(min(delay_s, timeout_s))
        listener = network.listeners.get(port)
        is_far = port in network.unreachable or self.peer in network.stranded
        if listener is None or is_far or delay_s > timeout_s:
            raise ConnectionLost(f"nothing listens on {host}:{port}")
        network.num_dialled += 1
        if expect is not None and listener.peer != expect:
            raise PeerError(f"{host}:{port} is peer {listener.peer}, not {expect}")
        ours, theirs = pair(network, self.peer, listener.peer)
        ours.round_trip_s = delay_s
        listener.answer(theirs)
        return ours

    async def listen(self, serve: Serve, *, host: str, port: int) -> "MemoryListener":
        port = port or self._network.next_port
        if port in self._network.listeners:
            raise RunError(f"port {port} is taken")
        listener = MemoryListener(self._network, self.peer, port, serve)
        self._network.listeners[port] = listener
        return listener


class MemoryListener:
    def __init__(self, network: Network, peer: PeerId | None, port: int, serve: Serve) -> None:
        self.port = port
        self.peer = peer
        self._network = network
        self._serve = serve
        self._conversations: set[asyncio.Task[None]] = set()

    def answer(self, connection: "MemoryConnection") -> None:
        conversation = asyncio.get_running_loop().create_task(self._converse(connection))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def close(self) -> None:
        self._network.listeners.pop(self.port, None)
        await asyncio.sleep(0)
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _converse(self, connection: "MemoryConnection") -> None:
        try:
            await self._serve(connection)
        except PeerError:
            pass  # one connection must not end the others
        except Exception as error:  # noqa: BLE001 - as the real listener does
            context = {"message": "serving a connection failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        finally:
            await connection.close()


class MemoryConnection:
    """One end; `owner` is whose it is, `peer` who is at the other end."""

    remote_host = "127.0.0.1"
    round_trip_s: float | None = None

    def __init__(self, network: Network, owner: PeerId | None, peer: PeerId | None) -> None:
        self.owner = owner
        self.peer = peer
        self.other: MemoryConnection
        self.paced: float | None = None  # bytes per second
        self._is_closed = False
        self._network = network
        self._inbox: deque[bytes] = deque()
        self._end = ""
        self._changed = asyncio.Event()
        self._sending = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return not self._end

    async def send(self, message: wire.Message, payload: Buffer = b"") -> None:
        async with self._sending:  # a message and its payload, with nothing in between
            with self._cut_if_cancelled():
                await self._put(wire.encode(message))
                if len(payload):
                    await self._put(self._on_its_way(bytes(payload)))

    async def receive(self) -> wire.Message:
        return wire.decode(await self._take())

    async def receive_payload(self, num_bytes: int, into: bytearray | None = None) -> bytearray:
        with self._cut_if_cancelled():
            payload = bytearray(await self._take() if num_bytes else b"")
        assert len(payload) == num_bytes, "a payload of another length than was announced"
        if into is None:
            return payload
        into[:] = payload
        return into

    def pace(self, bytes_per_s: float) -> None:
        """Keep what a real connection would do; nothing takes time here."""
        self.paced = bytes_per_s

    async def close(self) -> None:
        self._is_closed = True
        self._finish("the connection was closed here")
        self.other._finish("the other side closed the connection")

    def cut(self) -> None:
        """Break the connection, with all that is on its way."""
        for end in (self, self.other):
            end._inbox.clear()
            end._finish("the connection broke")

    @contextmanager
    def _cut_if_cancelled(self) -> Iterator[None]:
        """As a real connection does: what came next would be taken for the rest."""
        try:
            yield
        except asyncio.CancelledError:
            self.cut()
            raise

    def _on_its_way(self, payload: bytes) -> bytes:
        if self.owner in self._network.damaging:
            return bytes([payload[0] ^ 1]) + payload[1:]
        return payload

    async def _put(self, piece: bytes) -> None:
        while not self._end and len(self.other._inbox) >= QUEUE:
            await self._next_change()
        if self._end:
            raise ConnectionLost(self._end)
        self._network.sent[self.owner] += len(piece)
        self.other._inbox.append(piece)
        self.other._notify()
        await asyncio.sleep(0)

    async def _take(self) -> bytes:
        while not self._inbox:
            if self._end:
                raise ConnectionLost(self._end)
            await self._next_change()
        if self._is_closed:
            raise ConnectionLost(self._end)
        self.other._notify()
        piece = self._inbox.popleft()
        self._network.received[self.owner] += len(piece)
        return piece

    async def _next_change(self) -> None:
        await self._changed.wait()

    def _finish(self, end: str) -> None:
        self._end = self._end or end
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def pair(
    network: Network, one: PeerId | None, other: PeerId | None
) -> tuple[MemoryConnection, MemoryConnection]:
    """Return the two ends of a connection; the first belongs to `one`."""
    ends = MemoryConnection(network, one, other), MemoryConnection(network, other, one)
    ends[0].other, ends[1].other = ends[1], ends[0]
    network.connections += ends
    return ends


async def until(condition: Callable[[], object], *, within_s: float = 1000.0) -> None:
    """Wait, in virtual time, for something that nobody announces."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
