"""Fetching what a joiner lacks: a committed state, or the dataset, blob by blob from many sources.

    digest --fetch--> manifest --names--> chunks, each from whichever source is free

Nothing is trusted: every piece is checked against the digest that led to it, and the first digest
comes from the host's journal. Sources train on meanwhile: what they serve lies on their disks.
"""

import asyncio
import os
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atoll.data import manifest as dataset_manifest
from atoll.data.lock import alone_with
from atoll.data.shards import DAMAGED_HINT, Dataset, adopt
from atoll.durable import disk_errors, publish, remove, write_all
from atoll.errors import BusyError, DamagedError, PeerError, RunError
from atoll.exchange.links import DIAL_S, Links, fetch, fetch_from_any, unexpected
from atoll.exchange.tasks import in_thread, together
from atoll.ids import Digest, PeerId, digest_of
from atoll.net import wire
from atoll.outer.checkpoint import StateStore
from atoll.outer.manifest import CHUNK_BYTES
from atoll.outer.state import PeerState
from atoll.units import MIB, format_bytes

MAX_MANIFEST_BYTES = 64 * MIB  # names 4 TB of chunks
PER_SOURCE = 2  # requests at once: the next blob is on its way while one is asked for
AT_ONCE = 16  # requests in all, and so blobs in memory; further sources are asked when one fails
BUSY_S = 2.0  # before sources that are busy are asked again
BUSY_TRIES = 150  # in a row
ARRIVING_INNER = "arriving"  # beside the file that it becomes
INNER_BYTES_PER_S = 250_000  # moments that come slower are not worth the wait

Store = Callable[[int, bytearray], Awaitable[None]]  # index of the wanted blob, and its bytes
Sources = Sequence[wire.Address]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes that came now, and those that were on our disk from an attempt before."""

    num_bytes: int
    kept_bytes: int


async def fetch_state(
    state: PeerState,
    digest: Digest,
    *,
    sources: Sources,
    links: Links,
    store: StateStore,
    run: Digest,
) -> Fetched:
    """Make `state` and the store hold the state of this digest; return what that took.

    Raises:
        PeerError: some of it is not to be had now. `state` is as it was. What has arrived is kept,
            and told to the host as `arriving`, unless this attempt has brought nothing at all.
        RunError: there is no room for it; the same holds.
    """
    manifest = await _fetch_manifest(digest, sources=sources, links=links)
    if manifest is None:
        store.give_up()
        raise PeerError(f"none of {len(sources)} members has the state {digest[:12]}")
    receiver = await asyncio.to_thread(
        store.begin_receive, manifest, expect=digest, run=run, num_values=state.num_values
    )
    missing, chunks = receiver.missing(), receiver.manifest.chunks

    async def put(index: int, payload: bytearray) -> None:
        await in_thread(receiver.put, missing[index], payload)

    wanted = [(chunks[k], receiver.manifest.chunk_bytes) for k in missing]
    transfer = _Transfer(wanted, sources, links=links, store=put)
    try:
        await transfer.run()
        await in_thread(receiver.finish_, state)  # and not closed while it is written to
    except PeerError:
        if not transfer.num_bytes:
            store.give_up()  # the host may know of one that can be had
        raise
    finally:
        receiver.close()
    return Fetched(
        num_bytes=transfer.num_bytes + len(manifest),
        kept_bytes=receiver.manifest.state_bytes - transfer.num_bytes,
    )


async def _fetch_manifest(digest: Digest, *, sources: Sources, links: Links) -> bytearray | None:
    for _ in range(BUSY_TRIES):
        try:
            return await fetch_from_any(links, sources, digest, at_most=MAX_MANIFEST_BYTES)
        except BusyError:
            await asyncio.sleep(BUSY_S)
    return None


async def fetch_inner(
    path: Path, check: Callable[[Path], None], *, sources: Sources, links: Links, at_most: int
) -> PeerId | None:
    """Put the moments of a member that trains into this file; return whose they are.

    None: no source has any that pass the `check`, in time. All chunks come from one member: no
    other has the same. What has arrived when we are killed stays for the next time.

    Raises:
        RunError: there is no room for them.
    """
    arriving = path.with_name(ARRIVING_INNER)
    for source in sources:
        with suppress(PeerError, TimeoutError):  # another one may have them
            async with asyncio.timeout(DIAL_S + at_most / INNER_BYTES_PER_S):
                await _fetch_inner_from(source, arriving, links=links, at_most=at_most)
            await asyncio.to_thread(check, arriving)
            with disk_errors(path.parent):
                await asyncio.to_thread(publish, arriving, path)
            return source.peer
    await asyncio.to_thread(remove, arriving)
    return None


async def _fetch_inner_from(
    source: wire.Address, arriving: Path, *, links: Links, at_most: int
) -> None:
    async with links.to(source) as connection:
        await connection.send(wire.FetchInner())
        answer = await connection.receive()  # it may have to read and hash the file first
    if isinstance(answer, wire.Missing):
        raise PeerError(f"{source.peer} has no inner optimizer")
    if not isinstance(answer, wire.Inner):
        raise unexpected(answer)
    num_chunks = -(-answer.num_bytes // CHUNK_BYTES)
    if not 0 < answer.num_bytes <= at_most or len(answer.chunks) != num_chunks:
        raise PeerError(f"no inner optimizer: {answer.num_bytes} bytes in {len(answer.chunks)}")

    async def put(index: int, payload: bytearray) -> None:
        with disk_errors(arriving.parent):
            file.seek(missing[index] * CHUNK_BYTES)
            write_all(file, payload)  # nothing comes in between: there is no await

    with disk_errors(arriving.parent):
        missing = await asyncio.to_thread(_missing_of, answer, arriving)
        file = await asyncio.to_thread(arriving.open, "r+b", buffering=0)
    with file:
        wanted = [(answer.chunks[k], CHUNK_BYTES) for k in missing]
        await _Transfer(wanted, [source], links=links, store=put).run()
        with disk_errors(arriving.parent):
            await asyncio.to_thread(os.fsync, file.fileno())


def _missing_of(inner: wire.Inner, path: Path) -> list[int]:
    """Return which chunks of it are not in the file, which has its length from now on."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(inner.num_bytes)
        return [k for k, d in enumerate(inner.chunks) if digest_of(file.read(CHUNK_BYTES)) != d]


async def fetch_dataset(digest: Digest, *, sources: Sources, links: Links, cache: Path) -> Dataset:
    """Return the dataset of this digest, from the cache or from other members.

    Raises:
        PeerError: no source has all of it.
        RunError: there is no room for it.
        DamagedError: what the cache has under its name is none, or another one.
    """
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    # Peers on one machine share the cache: one of them fetches, the others wait and find it.
    async with alone_with(digest, cache=cache):
        if (cache / digest).is_dir():
            return await asyncio.to_thread(_opened, cache / digest)
        return await _fetch_dataset(digest, sources=sources, links=links, cache=cache)


async def fetch_tokenizer(dataset: Digest, *, sources: Sources, links: Links) -> bytes:
    """Return the `tokenizer.json` of the dataset of this digest, without any of its samples.

    Raises:
        PeerError: no source has it.
    """
    manifest = await _fetch_manifest(dataset, sources=sources, links=links)
    if manifest is None:
        raise PeerError(f"none of {len(sources)} members has the dataset {dataset[:12]}")
    needed = dataset_manifest.blobs_needed(bytes(manifest))
    (blob,) = (b for b in needed if b.file == dataset_manifest.TOKENIZER_FILE)
    came: list[bytearray] = []

    async def keep(_: int, payload: bytearray) -> None:
        came.append(payload)

    wanted = [(blob.digest, blob.num_bytes)]
    await _Transfer(wanted, sources, links=links, store=keep).run()
    return bytes(came[0])


async def _fetch_dataset(digest: Digest, *, sources: Sources, links: Links, cache: Path) -> Dataset:
    manifest = await _fetch_manifest(digest, sources=sources, links=links)
    if manifest is None:
        raise PeerError(f"none of {len(sources)} members has the dataset {digest[:12]}")
    needed = dataset_manifest.blobs_needed(bytes(manifest))
    partial = cache / f"{digest}.partial"
    # What an earlier attempt left is kept if it is whole: a long download goes on where it ended.
    todo = [b for b in needed if not await asyncio.to_thread(_is_there, partial / b.file, b.digest)]
    _make_room(partial, sum(blob.num_bytes for blob in todo))

    async def write(index: int, payload: bytearray) -> None:
        with disk_errors(partial):
            await asyncio.to_thread((partial / todo[index].file).write_bytes, payload)

    wanted = [(blob.digest, blob.num_bytes) for blob in todo]
    await _Transfer(wanted, sources, links=links, store=write).run()
    with disk_errors(partial):
        return await asyncio.to_thread(adopt, partial, manifest=bytes(manifest), directory=cache)


class _Transfer:
    """Blobs (digest, bytes at most) that come, each from whichever source is free.

    A source that fails, or lacks a blob, is not asked again; one that is busy is, in a while.
    """

    def __init__(
        self, wanted: Sequence[tuple[Digest, int]], sources: Sources, *, links: Links, store: Store
    ) -> None:
        self.num_bytes = 0  # that came
        self._total_bytes = sum(num_bytes for _, num_bytes in wanted)
        self._wanted = wanted
        self._todo = list(reversed(range(len(wanted))))
        self._working = {source.peer: source for source in sources}
        self._links = links
        self._store = store

    async def run(self) -> None:
        """Return when all are there.

        Raises:
            PeerError: some are not to be had.
        """
        busy_for = 0
        # A source may give up after the others ran dry: those that still work are asked once more.
        while self._todo and self._working and busy_for < BUSY_TRIES:
            before = len(self._todo), len(self._working)
            waiting = deque([*self._working.values()] * PER_SOURCE)
            await together(*(self._ask(waiting) for _ in range(min(AT_ONCE, len(waiting)))))
            busy_for = busy_for + 1 if before == (len(self._todo), len(self._working)) else 0
            if busy_for:
                await asyncio.sleep(BUSY_S)
        if self._todo:
            num_lost, num_wanted = len(self._todo), len(self._wanted)
            raise PeerError(f"{num_lost} of {num_wanted} blobs are not to be had any more")

    async def _ask(self, waiting: "deque[wire.Address]") -> None:
        while waiting:
            await self._drain(waiting.popleft())

    async def _drain(self, source: wire.Address) -> None:
        """Fetch from this source for as long as it serves us."""
        while self._todo:
            index = self._todo.pop()
            digest, at_most = self._wanted[index]
            payload: bytearray | None = None
            is_busy = False
            try:
                async with self._links.to(source) as connection:
                    payload = await fetch(connection, digest, at_most=at_most)
            except BusyError:
                is_busy = True
            except PeerError:
                pass  # as one that lacks it
            if payload is None:
                self._todo.append(index)
                if not is_busy:
                    self._working.pop(source.peer, None)
                return
            self._links.traffic.state_received += len(payload)
            await self._store(index, payload)
            self.num_bytes += len(payload)
            self._links.on_download(self.num_bytes, self._total_bytes)


def _opened(folder: Path) -> Dataset:
    """Return the dataset in this folder of a cache, if it is the one that its name says."""
    dataset = Dataset.open(folder)
    if dataset.digest != folder.name:
        raise DamagedError(f"{folder} has the manifest of another dataset", hint=DAMAGED_HINT)
    return dataset


def _make_room(folder: Path, num_bytes: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error}") from error
    if free < num_bytes:
        raise RunError(
            f"the rest of the dataset takes {format_bytes(num_bytes)}, "
            f"and {format_bytes(free)} are free",
            hint=f"make room in {folder.parent}",
        )


def _is_there(path: Path, digest: Digest) -> bool:
    return path.is_file() and digest_of(path.read_bytes()) == digest
