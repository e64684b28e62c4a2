"""The serving side of the exchange: what one member does for another that dialled it.

Slices are taken in while those before them are still being checked. Updates and blobs leave paced,
each with its share of our uplink (see `uplink`), and few joiners at a time (see `joiners`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TypeAlias

from atoll.errors import BadBlobError, ConnectionLost, PeerError
from atoll.exchange.joiners import Joiners
from atoll.exchange.links import Links, Patience, measured
from atoll.exchange.reduce import Reducer, Reducers
from atoll.exchange.tasks import group
from atoll.ids import Buffer, Digest, PeerId
from atoll.net import wire
from atoll.net.transport import Connection

Place: TypeAlias = tuple[Path, int, int]  # path, offset, num_bytes
Locate: TypeAlias = Callable[[Digest], Place | None]
IDLE_S = 3600.0  # a connection that asks nothing for so long is closed
UNCHECKED = 4  # slices of one connection that may be in checking while the next arrives


async def _no_inner() -> None:
    """Who does not train has no inner optimizer."""


class BlobServer:
    """Serves the updates and blobs of this member, and takes in slices for its reducers."""

    def __init__(
        self,
        *,
        reducers: Reducers,
        updates: Locate,
        states: Sequence[Locate],
        links: Links,
        inner: Callable[[], Awaitable[wire.Inner | None]] = _no_inner,
    ) -> None:
        """`updates` finds those of rounds that are committed; `states` what joiners fetch.

        `inner` says what there is of an inner optimizer, whose chunks `states` finds, too.
        """
        self._reducers = reducers
        self._updates = updates
        self._states = states
        self._links = links
        self._inner = inner
        self._joiners = Joiners(lambda: asyncio.get_running_loop().time())

    async def serve(self, connection: Connection) -> None:
        """Answer one connection until it ends. A stranger gets nothing."""
        peer = connection.peer
        if peer is None:
            await connection.send(
                wire.Refused(reason="no certificate", hint="enrol at the host of the run first")
            )
            return
        checking = asyncio.Semaphore(UNCHECKED)
        # Whoever is lost has what it wanted, or is gone.
        with suppress(ConnectionLost, TimeoutError):
            async with group() as start:
                while True:
                    async with asyncio.timeout(IDLE_S):
                        message = await connection.receive()
                    if isinstance(message, wire.Slice):
                        reducer, payload = await self._receive(connection, message)
                        await checking.acquire()
                        check = start(_take(reducer, connection, peer, message, payload))
                        check.add_done_callback(lambda _: checking.release())
                    else:
                        await self._answer(connection, peer, message)

    async def _answer(self, connection: Connection, peer: PeerId, message: wire.Message) -> None:
        match message:
            case wire.Bring():
                await self._hold(connection, peer, message)
            case wire.FetchUpdates():
                await self._send_updates(connection, message)
            case wire.Fetch(digest=digest):
                await self._send_blob(connection, peer, digest)
            case wire.FetchInner():
                await connection.send(await self._inner() or wire.Missing())
            case _:
                reason = f"{type(message).__name__} is no request to a member"
                await connection.send(wire.Refused(reason=reason))
                raise PeerError(reason)

    # --- slices ---------------------------------------------------------------------------------

    async def _hold(self, connection: Connection, peer: PeerId, bring: wire.Bring) -> None:
        """Say which slices of the contributor are here."""
        reducer = self._reducers.of(bring.round)
        if reducer is None:
            await connection.send(wire.Missing())  # perhaps its plan came before ours
            return
        held = reducer.held_of(peer)
        for named in held:
            reducer.confirm(peer, named.slice, named.digest)
        await connection.send(wire.Holding(slices=held))

    async def _receive(
        self, connection: Connection, slice_: wire.Slice
    ) -> tuple[Reducer, bytearray]:
        """Return the reducer of a slice, and its bytes, once it is clear that we want them.

        Raises:
            BadBlobError: it is none of ours, or has another size.
            PeerError: it is of another round.
        """
        reducer = self._reducers.of(slice_.round)
        if reducer is None:
            await connection.send(wire.Missing())
            raise PeerError(f"a slice of round {slice_.round}, which is not open")
        if slice_.num_bytes != reducer.expected_bytes(slice_.slice):
            raise await _refuse(connection, f"slice {slice_.slice} is of another size, or not ours")
        async with Patience(slice_.num_bytes):
            room = self._links.buffers.take(slice_.num_bytes)
            with measured(self._links.down, slice_.num_bytes):
                payload = await connection.receive_payload(slice_.num_bytes, room)
        self._links.traffic.contributions_received += len(payload)
        return reducer, payload

    # --- updates and blobs ----------------------------------------------------------------------

    async def _send_updates(self, connection: Connection, request: wire.FetchUpdates) -> None:
        """Send these updates in their order; Missing, where one is not there in time."""
        give_up_at = asyncio.get_running_loop().time() + request.seconds
        reducer = self._reducers.of(request.round)
        for index in request.slices:
            found: tuple[Digest, Buffer] | None = None
            if reducer is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(give_up_at):
                        found = await reducer.sum((request.roster_version, request.group, index))
            if found is None:
                await connection.send(wire.Missing())  # it may ask again
                return
            digest, payload = found
            update = wire.Update(slice=index, digest=digest, num_bytes=len(payload))
            await self._send(connection, update, payload)
            self._links.traffic.updates_sent += len(payload)

    async def _send_blob(self, connection: Connection, peer: PeerId, digest: Digest) -> None:
        """Send an update to one that missed it, or a part of a state to a joiner."""
        if (place := self._updates(digest)) is not None:
            num_bytes = await self._send_part(connection, digest, place)
            self._links.traffic.updates_sent += num_bytes
            return
        place = next((place for locate in self._states if (place := locate(digest))), None)
        if place is None or not self._joiners.admit(peer):
            await connection.send(wire.Missing(busy=place is not None))
            return
        with self._joiners.serving(peer):
            num_bytes = await self._send_part(connection, digest, place, to_joiner=True)
        self._links.traffic.state_sent += num_bytes

    async def _send_part(
        self, connection: Connection, digest: Digest, place: Place, *, to_joiner: bool = False
    ) -> int:
        """Send what lies there; return how many bytes that were."""
        payload = await asyncio.to_thread(_read, *place)
        if payload is None:
            await connection.send(wire.Missing())
            return 0
        blob = wire.Blob(digest=digest, num_bytes=len(payload))
        await self._send(connection, blob, payload, to_joiner=to_joiner)
        return len(payload)

    async def _send(
        self,
        connection: Connection,
        message: wire.Message,
        payload: Buffer,
        *,
        to_joiner: bool = False,
    ) -> None:
        num_bytes, links = len(payload), self._links
        # What a joiner takes tells of its line, and of the part of ours that it may have.
        counting = nullcontext() if to_joiner else links.sending(num_bytes)
        with links.uplink.flow(connection, to_joiner=to_joiner), counting:
            async with Patience(num_bytes):
                await connection.send(message, payload)


async def _take(
    reducer: Reducer,
    connection: Connection,
    peer: PeerId,
    slice_: wire.Slice,
    payload: bytearray,
) -> None:
    try:
        await reducer.take(peer, slice_.slice, slice_.digest, payload)
    except BadBlobError as error:
        await _refuse(connection, str(error))
        raise
    await connection.send(wire.Taken(slice=slice_.slice))


async def _refuse(connection: Connection, reason: str) -> PeerError:
    await connection.send(wire.Refused(reason=reason))
    return BadBlobError(reason)


def _read(path: Path, offset: int, num_bytes: int) -> bytes | None:
    """Return that part of the file, or None if it was pruned meanwhile.

    Its file may be written over then, once it has another name (`blobs`).
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            payload = file.read(num_bytes)
        is_whole = len(payload) == num_bytes and path.exists()
    except FileNotFoundError:
        return None
    return payload if is_whole else None
