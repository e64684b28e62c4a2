"""Fetching what a joiner lacks: a committed state, or the dataset, blob by blob from many sources.

    digest --fetch--> manifest --names--> chunks, each from whichever source is free

Nothing is trusted: every piece is checked against the digest that led to it, and the first digest
comes from the host's journal. Sources train on meanwhile: what they serve lies on their disks.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from atoll.data import manifest as dataset_manifest
from atoll.data.shards import Dataset, adopt
from atoll.durable import disk_errors
from atoll.errors import PeerError, RunError
from atoll.exchange.links import Links, fetch, fetch_from_any
from atoll.exchange.tasks import together
from atoll.ids import Digest, digest_of
from atoll.net import wire
from atoll.outer.checkpoint import StateStore
from atoll.outer.state import PeerState
from atoll.units import MIB, format_bytes

MAX_MANIFEST_BYTES = 64 * MIB  # names 4 TB of chunks
LOCK_S = 0.5  # between looks whether another process is done with fetching

Store = Callable[[int, bytearray], Awaitable[None]]  # index of the wanted blob, and its bytes
Sources = Sequence[wire.Address]


async def fetch_state(
    state: PeerState,
    digest: Digest,
    *,
    sources: Sources,
    links: Links,
    store: StateStore,
    run: Digest,
) -> int:
    """Make `state` and the store hold the state of this digest; return the bytes that this took.

    Raises:
        PeerError: no source has it any more; ask the host for a newer one. `state` is as it was.
    """
    manifest = await fetch_from_any(links, sources, digest, at_most=MAX_MANIFEST_BYTES)
    if manifest is None:
        raise PeerError(f"none of {len(sources)} members has the state {digest[:12]}")
    receiver = store.begin_receive(manifest, expect=digest, run=run, num_values=state.num_values)

    async def put(index: int, payload: bytearray) -> None:
        await asyncio.to_thread(receiver.put, index, payload)

    try:
        size = receiver.manifest.chunk_bytes
        chunks = [(chunk, size) for chunk in receiver.manifest.chunks]
        num_bytes = await _fetch_all(chunks, sources=sources, links=links, store=put)
        await asyncio.to_thread(receiver.finish_, state)
    finally:
        receiver.close()
    return num_bytes + len(manifest)


async def fetch_dataset(digest: Digest, *, sources: Sources, links: Links, cache: Path) -> Dataset:
    """Return the dataset of this digest, from the cache or from other members.

    Raises:
        PeerError: no source has all of it.
        RunError: there is no room for it.
    """
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    # Peers on one machine share the cache: one of them fetches, the others wait and find it.
    lock = FileLock(cache / f"{digest}.lock")
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
        await asyncio.sleep(LOCK_S)
    try:
        if (cache / digest).is_dir():
            return await asyncio.to_thread(Dataset.open, cache / digest)
        return await _fetch_dataset(digest, sources=sources, links=links, cache=cache)
    finally:
        lock.release()


async def _fetch_dataset(digest: Digest, *, sources: Sources, links: Links, cache: Path) -> Dataset:
    manifest = await fetch_from_any(links, sources, digest, at_most=MAX_MANIFEST_BYTES)
    if manifest is None:
        raise PeerError(f"none of {len(sources)} members has the dataset {digest[:12]}")
    needed = dataset_manifest.blobs_needed(bytes(manifest))
    partial = cache / f"{digest}.partial"
    _make_room(partial, sum(blob.num_bytes for blob in needed))
    # What an earlier attempt left is kept if it is whole: a long download goes on where it ended.
    todo = [b for b in needed if not await asyncio.to_thread(_is_there, partial / b.file, b.digest)]

    async def write(index: int, payload: bytearray) -> None:
        with disk_errors(partial):
            await asyncio.to_thread((partial / todo[index].file).write_bytes, payload)

    wanted = [(blob.digest, blob.num_bytes) for blob in todo]
    await _fetch_all(wanted, sources=sources, links=links, store=write)
    with disk_errors(partial):
        return await asyncio.to_thread(adopt, partial, manifest=bytes(manifest), directory=cache)


async def _fetch_all(
    wanted: Sequence[tuple[Digest, int]], *, sources: Sources, links: Links, store: Store
) -> int:
    """Fetch these blobs (digest, bytes at most), each from whichever source is free.

    Returns the number of bytes that came.
    A source that fails, or lacks a blob, is not asked again.
    """
    todo = list(reversed(range(len(wanted))))
    working = list(sources)
    num_bytes = 0

    async def drain(source: wire.Address) -> None:
        nonlocal num_bytes
        while todo:
            index = todo.pop()
            digest, at_most = wanted[index]
            try:
                async with links.to(source) as connection:
                    payload = await fetch(connection, digest, at_most=at_most)
            except PeerError:
                payload = None
            if payload is None:
                todo.append(index)
                working.remove(source)
                return
            links.traffic.state_received += len(payload)
            await store(index, payload)
            num_bytes += len(payload)

    # A source may give up after the others ran dry, so those that still work are asked once more.
    while todo and working:
        await together(*(drain(source) for source in working))
    if todo:
        raise PeerError(f"{len(todo)} of {len(wanted)} blobs are not to be had any more")
    return num_bytes


def _make_room(folder: Path, num_bytes: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error}") from error
    if free < num_bytes:
        raise RunError(
            f"the dataset takes {format_bytes(num_bytes)}, and {format_bytes(free)} are free",
            hint=f"make room in {folder.parent}",
        )


def _is_there(path: Path, digest: Digest) -> bool:
    return path.is_file() and digest_of(path.read_bytes()) == digest
