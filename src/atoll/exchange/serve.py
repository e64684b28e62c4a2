"""The serving side of the blob protocol: what one member does for another that dialled it."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from atoll.errors import BadBlobError, ConnectionLost, PeerError
from atoll.exchange.links import patience
from atoll.exchange.reduce import Reducer
from atoll.ids import Digest, PeerId
from atoll.net import wire
from atoll.net.transport import Connection

Locate: TypeAlias = Callable[[Digest], tuple[Path, int, int] | None]  # path, offset, num_bytes
IDLE_S = 3600.0  # a connection that asks nothing for so long is closed


class BlobServer:
    """Serves the blobs of this member, and takes in slices for its reducer."""

    def __init__(self, *, reducer: Reducer, locate: Sequence[Locate]) -> None:
        self._reducer = reducer
        self._locate = locate

    async def serve(self, connection: Connection) -> None:
        """Answer one connection until it ends. A stranger gets nothing."""
        if connection.peer is None:
            await connection.send(
                wire.Refused(reason="no certificate", hint="enrol at the host of the run first")
            )
            return
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    message = await connection.receive()
                await self._answer(connection, connection.peer, message)
        except (ConnectionLost, TimeoutError):
            pass  # it has what it wanted, or it is gone

    async def _answer(self, connection: Connection, peer: PeerId, message: wire.Message) -> None:
        match message:
            case wire.Offer():
                await self._take(connection, peer, message)
            case wire.Fetch(digest=digest):
                await self._send_blob(connection, digest)
            case wire.FetchUpdate():
                await self._send_update(connection, message)
            case _:
                reason = f"{type(message).__name__} is no request for a blob"
                await connection.send(wire.Refused(reason=reason))
                raise PeerError(reason)

    async def _take(self, connection: Connection, peer: PeerId, offer: wire.Offer) -> None:
        reducer = self._reducer
        if offer.round != reducer.round_id:
            # Perhaps its plan came before ours; it will ask again.
            await connection.send(wire.Missing())
            return
        if reducer.has(peer, offer.slice, offer.digest):
            reducer.confirm(peer, offer.slice, offer.digest)
            await connection.send(wire.Have())
            return
        if offer.num_bytes != reducer.expected_bytes(offer.slice):
            raise await _refuse(connection, f"slice {offer.slice} has another size")
        await connection.send(wire.Want())
        async with patience(0):
            blob = await connection.receive()
        if not isinstance(blob, wire.Blob) or blob.num_bytes != offer.num_bytes:
            raise await _refuse(connection, "not the blob that was offered")
        async with patience(blob.num_bytes):
            payload = await connection.receive_payload(blob.num_bytes)
        try:
            await reducer.take(peer, offer.slice, offer.digest, payload)
        except BadBlobError as error:
            await _refuse(connection, str(error))
            raise
        await connection.send(wire.Taken())

    async def _send_update(self, connection: Connection, request: wire.FetchUpdate) -> None:
        digest = None
        try:
            async with asyncio.timeout(request.seconds):
                digest = await self._reducer.update(
                    round_id=request.round,
                    roster_version=request.roster_version,
                    index=request.slice,
                )
        except TimeoutError:
            pass  # it may ask again
        if digest is None:
            await connection.send(wire.Missing())
        else:
            await self._send_blob(connection, digest)

    async def _send_blob(self, connection: Connection, digest: Digest) -> None:
        place = next((place for locate in self._locate if (place := locate(digest))), None)
        payload = None if place is None else await asyncio.to_thread(_read, *place)
        if payload is None:
            await connection.send(wire.Missing())
        else:
            async with patience(len(payload)):
                await connection.send(wire.Blob(digest=digest, num_bytes=len(payload)), payload)


async def _refuse(connection: Connection, reason: str) -> PeerError:
    await connection.send(wire.Refused(reason=reason))
    return BadBlobError(reason)


def _read(path: Path, offset: int, num_bytes: int) -> bytes | None:
    """Return that part of the file, or None if it was pruned meanwhile."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            payload = file.read(num_bytes)
    except FileNotFoundError:
        return None
    return payload if len(payload) == num_bytes else None
