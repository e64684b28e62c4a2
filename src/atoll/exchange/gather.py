"""Fetching updates and partial sums of a round from the reducers that form them, as they do."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from atoll.errors import BadBlobError
from atoll.exchange.blobs import BlobStore
from atoll.exchange.codec import Codec
from atoll.exchange.links import Links, Patience, measured, unexpected
from atoll.exchange.tasks import SHORT_BYTES, at_once_or_beside, group
from atoll.ids import Buffer, Digest, RoundId, digest_of
from atoll.net import wire
from atoll.net.transport import Connection

WAIT_S = 20.0  # for updates to be formed, in one request
UNCHECKED = 4  # updates that may be in checking while the next arrives

Gathered = Callable[[int, Digest, Buffer], None]  # index of a slice, and its update for now


@dataclass(frozen=True, slots=True)
class Wanted:
    """The updates of one roster of a round, or the partial sums of a group.

    `sizes` are the values of each slice.
    """

    round: RoundId
    roster_version: int
    codec: Codec
    sizes: tuple[int, ...]
    group: int | None = None


async def gather_from(
    connection: Connection,
    indices: Sequence[int],
    *,
    wanted: Wanted,
    blobs: BlobStore | None,
    links: Links,
    gathered: Gathered,
) -> None:
    """Get these slices, as far as they are formed in time; tell `gathered` of each.

    They are then in our store, if there is one for them.

    Raises:
        PeerError: the reducer is gone, or what it sent is damaged.
        RunError: our disk is full.
    """
    request = wire.FetchUpdates(
        round=wanted.round,
        roster_version=wanted.roster_version,
        slices=tuple(indices),
        seconds=WAIT_S,
        group=wanted.group,
    )
    checking = asyncio.Semaphore(UNCHECKED)

    async def keep(index: int, digest: Digest, payload: bytearray) -> None:
        check = partial(_check, payload, digest, wanted.sizes[index], wanted.codec)
        await at_once_or_beside(check, is_short=len(payload) <= SHORT_BYTES)
        if blobs is not None:
            await blobs.keep_soon(digest, payload)
        checking.release()
        gathered(index, digest, payload)
        links.buffers.give(payload)

    async with group() as start:
        async with Patience(0):
            await connection.send(request)
        for index in indices:
            update = await _next(connection, index, wanted)
            if update is None:
                break
            async with Patience(update.num_bytes):
                room = links.buffers.take(update.num_bytes)
                with measured(links.down, update.num_bytes):
                    payload = await connection.receive_payload(update.num_bytes, room)
            await checking.acquire()
            start(keep(index, update.digest, payload))


async def _next(connection: Connection, index: int, wanted: Wanted) -> wire.Update | None:
    """Return the announcement of the next update; None: it was not formed in time."""
    async with Patience(0, waiting_s=WAIT_S):
        answer = await connection.receive()
    if isinstance(answer, wire.Missing):
        return None
    if not isinstance(answer, wire.Update) or answer.slice != index:
        raise unexpected(answer)
    expected = wanted.codec.encoded_bytes(wanted.sizes[index])
    if answer.num_bytes != expected:
        raise BadBlobError(
            f"the update of slice {index} has {answer.num_bytes} bytes instead of {expected}"
        )
    return answer


def _check(payload: Buffer, digest: Digest, num_values: int, codec: Codec) -> None:
    codec.check(payload, num_values)
    if digest_of(payload) != digest:
        raise BadBlobError(f"what came is not what was announced: {digest}")
