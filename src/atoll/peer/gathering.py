"""Fetching what one reducer forms, for as long as that takes."""

import asyncio
from collections.abc import Callable, Sequence

from atoll.errors import BadBlobError, ConnectionLost, PeerError
from atoll.exchange.blobs import BlobStore
from atoll.exchange.gather import Gathered, Wanted, gather_from
from atoll.net import wire
from atoll.net.transport import Connection
from atoll.peer.member import Member

RETRY_S = 0.3  # before a reducer that failed is asked again; the host may name another meanwhile


async def gather_all(
    missing: Callable[[], Sequence[int]],
    reducer: wire.Address,
    *,
    wanted: Wanted,
    blobs: BlobStore | None,
    gathered: Gathered,
    member: Member,
) -> None:
    """Fetch the slices that are missing until none is; tell the host of a reducer out of reach."""

    async def gather(connection: Connection, indices: Sequence[int]) -> None:
        await gather_from(
            connection, indices, wanted=wanted, blobs=blobs, links=member.links, gathered=gathered
        )

    while todo := missing():
        try:
            await member.links.share_out(reducer, todo, gather)
        except PeerError as error:
            if isinstance(error, ConnectionLost | BadBlobError):
                member.complain(wanted.round, reducer.peer)
        if missing():
            await asyncio.sleep(RETRY_S)
