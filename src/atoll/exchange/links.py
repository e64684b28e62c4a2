"""Connections to other members, which we dialled, and asking for blobs on them.

    fetch          Fetch -> Blob + bytes | Missing

A connection serves one request at a time, and is kept for the next one to the same member, until a
plan comes that has nothing for us to do with it: in a large run the others would have far too many.

What goes far takes several connections at once: there, a flow of TCP takes many round trips to find
the rate of the line, and loses half of it with each lost packet. Not so with BBR.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import inf
from types import TracebackType
from typing import Any, TypeAlias
from weakref import WeakSet

from atoll.errors import BadBlobError, BusyError, ConnectionLost, PeerError, ProtocolError
from atoll.exchange.buffers import Buffers
from atoll.exchange.rates import LineRate
from atoll.exchange.round_trips import RoundTrips
from atoll.exchange.tasks import together
from atoll.exchange.uplink import Uplink
from atoll.ids import Digest, PeerId, digest_of
from atoll.net import wire
from atoll.net.transport import Connection, Transport
from atoll.traffic import Traffic

DIAL_S = 10.0
ANSWER_S = 15.0  # for a member to say something
SLOWEST_BYTES_PER_S = 16_000  # a slower line than this is no line
SHUNNED_ROUNDS = 3  # for which who failed us is asked after all others
FAR_S = 0.03  # of a round trip
FAR_CONNECTIONS = 6  # to a member that is far
FLOWS = 24  # to all members together, that is: more than these fill any line
ASK_EVERY_S = 1 / 32  # what the others have: twice in a bin of the rate. The answer costs a while
Use: TypeAlias = Callable[[Connection, Sequence[int]], Coroutine[Any, Any, None]]


def num_connections(round_trip_s: float | None, *, num_members: int, backs_off: bool) -> int:
    """Return how many connections to a member that is so far away are to be used at once.

    `num_members` is with how many we have to do now; `backs_off` says whether a lost packet makes a
    flow of ours slower.
    """
    if round_trip_s is None or round_trip_s < FAR_S or not backs_off:
        return 1
    return max(1, min(FAR_CONNECTIONS, FLOWS // num_members))


class Links:
    """The connections of this member to others, by peer; what moves on them, and how fast."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.traffic = Traffic()
        self.buffers = Buffers()
        self.up = LineRate()
        self.down = LineRate()
        self.uplink = Uplink(transport)
        self.round_trips = RoundTrips()
        # Hears how far a download is: bytes that came, bytes that are to come in all.
        self.on_download: Callable[[int, int], None] = lambda _come, _all: None
        self._confirmed: int | None = None  # bytes, of all that was sent; None: nobody tells
        self._confirmed_s = 0.0  # when they were, in busy time
        self._asked_at = 0.0
        self._idle: dict[PeerId, list[Connection]] = defaultdict(list)
        self._open: dict[PeerId, WeakSet[Connection]] = defaultdict(WeakSet)  # also those in use
        self._closing: set[asyncio.Task[None]] = set()
        self._failed_in: dict[PeerId, int] = {}  # the last round in which it failed us
        self._num_rounds = 0

    def end_round(self) -> None:
        """Learn from what a round has moved how fast the line is."""
        self._num_rounds += 1
        self._failed_in = {
            peer: at for peer, at in self._failed_in.items() if self.has_failed(peer)
        }
        self.down.end_round()
        if (rate := self.up.end_round()) is not None:
            best = self.up.estimate or rate
            self.uplink.end_round(rate, best=best, is_sure=self.up.is_sure)

    @contextmanager
    def sending(self, num_bytes: int) -> Iterator[None]:
        """Count the body as a transfer of so many bytes to a member; if it fails, as one of none.

        What is sent has left us long before it has passed the line. So where the system tells what
        the others have, that counts instead: over all connections, since it was asked last.
        """
        now = asyncio.get_running_loop().time
        began_s = self.up.begin(now())
        if self.up.under_way == 1:
            self._confirmed, self._confirmed_s = self.transport.num_confirmed, began_s
        moved = 0
        try:
            yield
            moved = num_bytes
        finally:
            if self._confirmed is None:
                self.up.end(began_s, now=now(), num_bytes=moved)
            elif self.up.under_way > 1 and now() < self._asked_at + ASK_EVERY_S:
                self.up.end(began_s, now=now(), num_bytes=0)  # the next answer tells of this, too
            else:
                self._asked_at = now()
                confirmed = self.transport.num_confirmed or 0
                moved, self._confirmed = max(0, confirmed - self._confirmed), confirmed
                self._confirmed_s = self.up.end(
                    self._confirmed_s, now=self._asked_at, num_bytes=moved
                )

    @asynccontextmanager
    async def to(self, address: wire.Address) -> AsyncIterator[Connection]:
        """Lend a connection to this member; it is closed, not kept, when the use of it fails.

        Raises:
            PeerError: the member cannot be reached.
        """
        connection = await self._kept(address.peer) or await self._dial(address)
        try:
            yield connection
        except BaseException:  # also a cancelled request leaves its answer in the pipe
            await connection.close()
            raise
        self._idle[address.peer].append(connection)

    async def share_out(self, address: wire.Address, indices: Sequence[int], use: Use) -> None:
        """Do what there is to do with a member over as many connections as its distance asks for.

        Each has its part of the indices, one after the other in turns, so that all parts keep
        their order. When one fails, all end.

        Raises:
            PeerError: the member cannot be reached, or what `use` raises.
        """

        async def on_one_more(part: Sequence[int]) -> None:
            async with self.to(address) as connection:
                await use(connection, part)

        async with self.to(address) as first:
            self._note_round_trip(address.peer)
            num = num_connections(
                self.round_trips.of(address.peer),
                num_members=len({address.peer, *self._idle}),
                backs_off=self.transport.backs_off,
            )
            parts = [indices[k::num] for k in range(min(num, len(indices)))]
            await together(use(first, parts[0]), *(on_one_more(part) for part in parts[1:]))

    async def measure(self, address: wire.Address) -> None:
        """Learn how far away a member is, by dialling it, if we do not know.

        Raises:
            PeerError: the member cannot be reached.
        """
        if address.peer not in self.round_trips:
            connection = await self._dial(address)
            await connection.close()

    async def _dial(self, address: wire.Address) -> Connection:
        connection = await self.transport.dial(
            address.host, address.port, expect=address.peer, timeout_s=DIAL_S
        )
        self._open[address.peer].add(connection)
        self._note_round_trip(address.peer)
        return connection

    def _note_round_trip(self, peer: PeerId) -> None:
        """Note the shortest that one of our connections has seen: others began on busy lines."""
        known_s = [one.round_trip_s for one in self._open[peer] if one.is_open]
        self.round_trips.note(
            peer, min((trip_s for trip_s in known_s if trip_s is not None), default=None)
        )

    async def _kept(self, peer: PeerId) -> Connection | None:
        """Return a kept connection to the member, if there is one that it has not ended."""
        idle = self._idle[peer]
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
            await connection.close()
        return None

    def keep_only(self, peers: Collection[PeerId]) -> None:
        """Close the connections that are in no use now, but for those to these members."""
        for peer in [peer for peer in self._open if peer not in peers]:
            del self._open[peer]
        for peer in [peer for peer in self._idle if peer not in peers]:
            for connection in self._idle.pop(peer):
                closing = asyncio.create_task(connection.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    def note_failed(self, peer: PeerId) -> None:
        """Note that the member cannot be reached, is frozen, or has a line that is none."""
        self._failed_in[peer] = self._num_rounds

    def has_failed(self, peer: PeerId) -> bool:
        """Return whether the member has failed us of late: it may well cost us its time again."""
        return self._failed_in.get(peer, -inf) > self._num_rounds - SHUNNED_ROUNDS

    async def close(self) -> None:
        self.keep_only(())
        await asyncio.gather(*self._closing)


async def fetch(connection: Connection, digest: Digest, *, at_most: int) -> bytearray | None:
    """Return the blob of so many bytes at most, or None if the member does not have it.

    Raises:
        BusyError: the member serves as many joiners as it can.
        PeerError: the member is gone, or what it sent is not that blob.
    """
    async with Patience(0):
        await connection.send(wire.Fetch(digest=digest))
        answer = await connection.receive()
    if isinstance(answer, wire.Missing):
        if answer.busy:
            raise BusyError(f"{connection.peer} serves other joiners")
        return None
    if not isinstance(answer, wire.Blob) or answer.digest != digest:
        raise unexpected(answer)
    if answer.num_bytes > at_most:
        raise ProtocolError(f"a blob of {answer.num_bytes} bytes, where {at_most} are the most")
    async with Patience(answer.num_bytes):
        payload = await connection.receive_payload(answer.num_bytes)
    if digest_of(payload) != digest:
        raise BadBlobError(f"{connection.peer} sent a damaged blob {digest[:12]}")
    return payload


async def fetch_from_any(
    links: Links,
    sources: Sequence[wire.Address],
    digest: Digest,
    *,
    at_most: int,
) -> bytearray | None:
    """Return the blob from the first source that has it, or None if none does.

    Who has failed us of late is asked last: it cost us its time once.

    Raises:
        BusyError: none of them has it to give, but one may in a while.
    """
    busy: BusyError | None = None
    for source in sorted(sources, key=lambda source: links.has_failed(source.peer)):
        try:
            async with links.to(source) as connection:
                payload = await fetch(connection, digest, at_most=at_most)
        except BusyError as error:
            busy = error
            continue
        except PeerError:
            links.note_failed(source.peer)
            continue  # the next one may have it
        if payload is not None:
            return payload
    if busy is not None:
        raise busy
    return None


@contextmanager
def measured(line: LineRate, num_bytes: int) -> Iterator[None]:
    """Count the body as a transfer of so many bytes; if it fails, as one of none."""
    loop = asyncio.get_running_loop()
    began_s = line.begin(loop.time())
    moved = 0
    try:
        yield
        moved = num_bytes
    finally:
        line.end(began_s, now=loop.time(), num_bytes=moved)


class Patience:
    """Gives the other side the time that so many bytes take on a slow line, and a little more.

    `async with Patience(...)` raises ConnectionLost if it takes longer: it is frozen, or cut off
    without a word. (A class, since a generator takes half as long again, for each message.)
    """

    def __init__(self, num_bytes: int, *, waiting_s: float = 0.0) -> None:
        seconds = ANSWER_S + waiting_s + num_bytes / SLOWEST_BYTES_PER_S
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise ConnectionLost("the other side does not answer") from late


def unexpected(answer: wire.Message) -> PeerError:
    """Return the error that an answer means which is none of those asked for."""
    if isinstance(answer, wire.Refused):
        return PeerError(f"refused: {answer.reason}", hint=answer.hint)
    return ProtocolError(f"an answer out of place: {type(answer).__name__}")
