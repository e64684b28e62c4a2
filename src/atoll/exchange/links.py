"""Asking other members for blobs, and offering them ours: always as the one who dials.

    offer          Offer -> Have                    it has these bytes already
                   Offer -> Want, Blob + bytes -> Taken
    fetch          Fetch -> Blob + bytes | Missing
    fetch_update   FetchUpdate -> Blob + bytes | Missing   (waits at the reducer until it is formed)

A connection serves one request at a time, and is kept for the next one to the same member.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from atoll.errors import BadBlobError, ConnectionLost, PeerError, ProtocolError
from atoll.ids import Buffer, Digest, PeerId, RoundId, digest_of
from atoll.net import wire
from atoll.net.transport import Connection, Transport

DIAL_S = 10.0
ANSWER_S = 30.0  # for a member to say something
SLOWEST_BYTES_PER_S = 16_000  # a slower line than this is no line


class Links:
    """The connections of this member to others, by peer."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._idle: dict[PeerId, list[Connection]] = defaultdict(list)

    @asynccontextmanager
    async def to(self, address: wire.Address) -> AsyncIterator[Connection]:
        """Lend a connection to this member; it is closed, not kept, when the use of it fails.

        Raises:
            PeerError: the member cannot be reached.
        """
        connection = await self._kept(address.peer) or await self._transport.dial(
            address.host, address.port, expect=address.peer, timeout_s=DIAL_S
        )
        try:
            yield connection
        except BaseException:  # also a cancelled request leaves its answer in the pipe
            await connection.close()
            raise
        self._idle[address.peer].append(connection)

    async def _kept(self, peer: PeerId) -> Connection | None:
        """Return a kept connection to the member, if there is one that it has not ended."""
        idle = self._idle[peer]
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
            await connection.close()
        return None

    async def close(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                await connection.close()
        self._idle.clear()


async def offer(
    connection: Connection, payload: Buffer, *, round_id: RoundId, index: int, digest: Digest
) -> int:
    """Bring slice `index` of our contribution to its reducer; return the bytes that this took.

    Raises:
        PeerError: the reducer is gone, or refuses the slice.
    """
    num_bytes = len(payload)
    async with patience(num_bytes):
        await connection.send(
            wire.Offer(round=round_id, slice=index, digest=digest, num_bytes=num_bytes)
        )
        match await connection.receive():
            case wire.Have():
                return 0
            case wire.Want():
                await connection.send(wire.Blob(digest=digest, num_bytes=num_bytes), payload)
                answer = await connection.receive()
                if not isinstance(answer, wire.Taken):
                    raise _unexpected(answer)
                return num_bytes
            case answer:
                raise _unexpected(answer)


async def fetch(connection: Connection, digest: Digest, *, at_most: int) -> bytearray | None:
    """Return the blob of so many bytes at most, or None if the member does not have it.

    Raises:
        PeerError: the member is gone, or what it sent is not that blob.
    """
    async with patience(0):
        await connection.send(wire.Fetch(digest=digest))
        answer = await connection.receive()
    if isinstance(answer, wire.Missing):
        return None
    if not isinstance(answer, wire.Blob) or answer.digest != digest:
        raise _unexpected(answer)
    return await _payload(connection, answer, at_most=at_most)


async def fetch_update(
    connection: Connection, request: wire.FetchUpdate, *, at_most: int
) -> tuple[Digest, bytearray] | None:
    """Return the update of a slice from its reducer, or None if it is not there in time.

    Raises:
        PeerError: the reducer is gone, or what it sent is damaged.
    """
    async with patience(0, waiting_s=request.seconds):
        await connection.send(request)
        answer = await connection.receive()
    if isinstance(answer, wire.Missing):
        return None
    if not isinstance(answer, wire.Blob):
        raise _unexpected(answer)
    return answer.digest, await _payload(connection, answer, at_most=at_most)


async def fetch_from_any(
    links: Links, sources: Sequence[wire.Address], digest: Digest, *, at_most: int
) -> bytearray | None:
    """Return the blob from the first source that has it, or None if none does."""
    for source in sources:
        try:
            async with links.to(source) as connection:
                payload = await fetch(connection, digest, at_most=at_most)
        except PeerError:
            continue  # the next one may have it
        if payload is not None:
            return payload
    return None


async def _payload(connection: Connection, blob: wire.Blob, *, at_most: int) -> bytearray:
    if blob.num_bytes > at_most:
        raise ProtocolError(f"a blob of {blob.num_bytes} bytes, where {at_most} are the most")
    async with patience(blob.num_bytes):
        payload = await connection.receive_payload(blob.num_bytes)
    if digest_of(payload) != blob.digest:
        raise BadBlobError(f"{connection.peer} sent a damaged blob {blob.digest[:12]}")
    return payload


@asynccontextmanager
async def patience(num_bytes: int, *, waiting_s: float = 0.0) -> AsyncIterator[None]:
    """Give the other side the time that so many bytes take on a slow line, and a little more.

    Raises:
        ConnectionLost: it took longer: it is frozen, or cut off without a word.
    """
    try:
        async with asyncio.timeout(ANSWER_S + waiting_s + num_bytes / SLOWEST_BYTES_PER_S):
            yield
    except TimeoutError as error:
        raise ConnectionLost("the other side does not answer") from error


def _unexpected(answer: wire.Message) -> PeerError:
    if isinstance(answer, wire.Refused):
        return PeerError(f"refused: {answer.reason}", hint=answer.hint)
    return ProtocolError(f"an answer out of place: {type(answer).__name__}")
