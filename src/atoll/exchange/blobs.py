"""Blobs on disk: immutable files, each named by the digest of its content.

What is here under a name is that content, or it is not here: whoever reads it compares the digest,
so what a power failure has left half-written does no harm.

    put --> temporary name --rename--> digest --sweep--> spare --> written over by a later put

Writing over a file costs a third of making a new one, whose blocks are to be found first.
"""

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, get_ident
from typing import NamedTuple

from atoll.durable import (
    TEMPORARY,
    Location,
    disk_errors,
    open_directory,
    remove,
    write_over,
)
from atoll.errors import BadBlobError
from atoll.exchange.tasks import in_thread
from atoll.ids import Buffer, Digest, digest_of
from atoll.system import sync

TOGETHER_S = 0.004  # in which what is to be kept is waited for: threads cost more than small files


class _Waiting(NamedTuple):
    digest: Digest
    payload: Buffer
    kept: "asyncio.Future[None]"


class BlobStore:
    """A directory of blobs, of one process; its methods may run in several threads at once.

    A blob is young for `young_turns` turns after the one in which it was put.
    """

    def __init__(self, directory: Path, *, young_turns: int = 1) -> None:
        self._directory = directory
        self._young_turns = young_turns
        self._turn = 0
        self._put_in: dict[Digest, int] = {}  # the turn; what was there before counts as turn 0
        self._unsynced: list[Digest] = []
        self._spares: list[Path] = []  # files that no blob needs any more
        self._num_spared = 0
        self._lock = Lock()  # of all these
        self._waiting: list[_Waiting] = []  # to be kept, on the loop
        self._keeping: asyncio.Task[None] | None = None
        self._flushing = Lock()  # who flushes waits for who flushes already
        open_directory(directory)

    def put(self, digest: Digest, payload: Buffer) -> None:
        """Keep a blob. After the next `flush` it survives also a power failure.

        Raises:
            BadBlobError: it is not the one of that digest.
            RunError: the disk is full, or cannot be written to. Nothing else is lost.
        """
        if digest_of(payload) != digest:
            raise BadBlobError(f"a blob is not the one that was asked for: {digest}")
        self.keep(digest, payload)

    def keep(self, digest: Digest, payload: Buffer) -> None:
        """Keep, and raise, as `put` does, what was hashed by whoever formed it."""
        with self._lock:  # a sweep has taken it by now, or leaves it
            self._put_in[digest] = self._turn
        if self.has(digest) and self.get(digest) is not None:
            return
        with disk_errors(self._directory):
            temporary = self._room()
            try:
                write_over(temporary, payload)
                temporary.replace(self._path(digest))
            except OSError:
                remove(temporary)
                raise
        with self._lock:
            self._unsynced.append(digest)

    async def keep_soon(self, digest: Digest, payload: Buffer) -> None:
        """Keep, and raise, as `keep` does, in a thread, with what else is to be kept meanwhile.

        Whoever is cancelled here does not know whether the payload is still read.
        """
        waiting = _Waiting(digest, payload, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_those_who_wait())
        await waiting.kept

    async def _keep_those_who_wait(self) -> None:
        try:
            await asyncio.sleep(TOGETHER_S)
            while self._waiting:
                batch, self._waiting = self._waiting, []
                for (_, _, kept), error in zip(batch, await self._tried(batch), strict=True):
                    if kept.done():
                        continue  # cancelled
                    if error is None:
                        kept.set_result(None)
                    else:
                        kept.set_exception(error)
        finally:
            self._keeping = None

    async def _tried(self, batch: Sequence[_Waiting]) -> Sequence[Exception | None]:
        try:
            return await in_thread(self._keep_all, batch)
        except Exception as error:  # noqa: BLE001 - there was no thread: all who wait hear of it
            return [error] * len(batch)

    def _keep_all(self, batch: Sequence[_Waiting]) -> list[Exception | None]:
        """Keep each, and return what was wrong."""
        errors: list[Exception | None] = []
        for digest, payload, _ in batch:
            try:
                self.keep(digest, payload)
                errors.append(None)
            except Exception as error:  # noqa: BLE001 - whoever waits for it raises it
                errors.append(error)
        return errors

    def _room(self) -> Path:
        """Return a file that is nobody's, or a name of this thread's alone for a new one."""
        with self._lock:
            if self._spares:
                return self._spares.pop()
        return self._directory / f"{TEMPORARY}{get_ident()}"

    def flush(self) -> None:
        """Return when all that was put before is on the disk.

        Raises:
            RunError: the disk is broken.
        """
        with self._flushing:
            with self._lock:
                waiting, self._unsynced = self._unsynced, []
            with disk_errors(self._directory):
                for digest in waiting:
                    with suppress(FileNotFoundError):  # swept meanwhile
                        sync(self._path(digest))
                if waiting:
                    sync(self._directory)

    def get(self, digest: Digest) -> bytes | None:
        """Return a blob, or None if it is not here.

        A damaged one is removed and not here: whoever has the blob can send it again, so one
        flipped bit need not stop a peer.
        """
        try:
            payload = self._path(digest).read_bytes()
        except FileNotFoundError:
            return None
        if digest_of(payload) == digest:
            return payload
        remove(self._path(digest))
        return None

    def has(self, digest: Digest) -> bool:
        """Return whether there is such a file; only `get` reads it."""
        return self._path(digest).exists()

    def locate(self, digest: Digest) -> Location | None:
        """Return where a blob's bytes are; they may be damaged: who gets them checks."""
        try:
            return Location(self._path(digest), 0, self._path(digest).stat().st_size)
        except FileNotFoundError:
            return None

    def turn(self) -> None:
        """Begin another turn: what is put from now on is younger than what was put before."""
        self._turn += 1

    def sweep(self, named: Collection[Digest]) -> None:
        """Remove the blobs that nobody names and that are not young any more.

        Turns and not times decide: a clock may be wrong. Their files are for those that are put
        until the next sweep, which removes what is left of them.
        """
        with self._lock:
            unused, self._spares = self._spares, []
        for path in unused:
            remove(path)
        for path in list(self._directory.iterdir()):
            digest = Digest(path.name)
            if digest not in named and not path.name.startswith(TEMPORARY):
                self._spare_if_old(digest)

    def _spare_if_old(self, digest: Digest) -> None:
        """Take the file of an old blob, which is not here any more before others write over it.

        Unless it was put again meanwhile: then it is young.
        """
        with self._lock:
            if self._put_in.get(digest, 0) >= self._turn - self._young_turns:
                return
            self._put_in.pop(digest, None)
            self._num_spared += 1
            spare = self._directory / f"{TEMPORARY}spare-{self._num_spared}"
            with suppress(FileNotFoundError):  # it was damaged, and who read it has removed it
                self._path(digest).replace(spare)
                self._spares.append(spare)

    def _path(self, digest: Digest) -> Path:
        return self._directory / digest
