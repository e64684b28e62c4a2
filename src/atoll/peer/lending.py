"""The inner optimizer's moments, lent to joiners: the newest that were saved, chunk by chunk.

They are another's with each save, and one joiner needs all chunks of one. So what somebody fetches
stays on the disk, and is what the next one gets, until nobody has asked for a while.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path

from atoll.durable import Location
from atoll.ids import Digest, digest_of
from atoll.net import wire
from atoll.outer.manifest import CHUNK_BYTES
from atoll.peer.home import Home

IN_USE_S = 60.0  # as for states


class Lending:
    """`now` tells the time, in seconds."""

    def __init__(self, home: Home, *, now: Callable[[], float]) -> None:
        self._home = home
        self._now = now
        self._lent: Path | None = None
        self._offer = wire.Inner(num_bytes=0, chunks=())
        self._used_at = -inf
        self._hashing = asyncio.Lock()

    async def offer(self) -> wire.Inner | None:
        """Return what a joiner can fetch; None: nothing was saved yet."""
        async with self._hashing:
            is_used = self._lent is not None and self._now() - self._used_at <= IN_USE_S
            newest = await asyncio.to_thread(self._home.newest_inner)
            if newest is not None and newest != self._lent and not is_used:
                self._home.lend_inner(newest)
                with suppress(FileNotFoundError):  # a newer one has just taken its place
                    self._offer = await asyncio.to_thread(_chunks_of, newest)
                    self._lent = newest
            self._used_at = self._now()
            return self._offer if self._lent is not None else None

    def locate(self, digest: Digest) -> Location | None:
        """Return where a chunk of it is; whoever gets it checks."""
        if self._lent is None or digest not in self._offer.chunks:
            return None
        self._used_at = self._now()
        start = self._offer.chunks.index(digest) * CHUNK_BYTES
        return Location(self._lent, start, min(CHUNK_BYTES, self._offer.num_bytes - start))


def _chunks_of(path: Path) -> wire.Inner:
    chunks: list[Digest] = []
    num_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            chunks.append(digest_of(chunk))
            num_bytes += len(chunk)
    return wire.Inner(num_bytes=num_bytes, chunks=tuple(chunks))
