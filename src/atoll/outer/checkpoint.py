"""The committed states that a peer keeps on disk, to resume from and to hand to joiners.

    000012/state.safetensors     a header, then momentum and params: the chunks of the manifest
    000012/manifest.json

    incoming/state.safetensors   a state of which chunks are still to come
    incoming/manifest.json       which one

The header carries the digest of the manifest, so no damage to either file goes unseen. A chunk that
arrived in `incoming` is told by its digest, so it needs no record: whoever is killed in the middle
of a transfer has later what had arrived, and so has one who is told to fetch a newer state.

Shapes: N values.
"""

import os
import shutil
from contextlib import suppress
from functools import lru_cache
from itertools import count
from math import inf
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import msgspec

from atoll.durable import (
    TEMPORARY,
    Location,
    disk_errors,
    is_refusal,
    open_directory,
    publish,
    remove,
    write_all,
    write_synced,
    write_whole,
)
from atoll.errors import BadBlobError, DamagedError, RunError
from atoll.ids import Buffer, Digest, RoundId, digest_of
from atoll.outer.manifest import StateManifest, bytes_of, parse_manifest
from atoll.outer.state import PeerState
from atoll.system import sync
from atoll.units import format_bytes

IN_USE_S = 60.0  # a state that was located so recently is not pruned: somebody may be fetching it
STATE_FILE = "state.safetensors"
MANIFEST_FILE = "manifest.json"
INCOMING = "incoming"


class Arriving(NamedTuple):
    """A state of which about so many bytes have arrived; all, while the rest is on its way."""

    round: RoundId
    digest: Digest
    num_bytes: int


class StateStore:
    """A directory with one folder per state, of one process. `locate` may run beside `save`."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._locations: dict[RoundId, dict[Digest, Location]] = {}
        self._used_at: dict[RoundId, float] = {}
        self._numbers = count()  # of temporary folders
        open_directory(directory)
        self._incoming: StateManifest | None = None
        self._receiver: StateReceiver | None = None
        with suppress(OSError, BadBlobError):  # if it is damaged, the state is fetched anew
            content = (directory / INCOMING / MANIFEST_FILE).read_bytes()
            self._incoming = parse_manifest(content)
        for round in self.rounds():
            with suppress(DamagedError):  # nothing of it is served; `load_` is where it matters
                self._index(self._manifest(round))

    def rounds(self) -> tuple[RoundId, ...]:
        """Return the rounds whose states are here, oldest first."""
        names = [path.name for path in self._directory.iterdir()]
        return tuple(sorted(RoundId(int(name)) for name in names if name.isdecimal()))

    def save(self, state: PeerState, manifest: StateManifest, *, now: float) -> None:
        """Write a state to the disk, and drop old ones.

        Raises:
            RunError: the disk is full, or cannot be written to. The states saved before are intact.
        """
        assert (manifest.round, manifest.num_values) == (state.round, state.num_values)
        with disk_errors(self._directory):
            self._incoming = None  # who has a state of its own needs no other
            remove(self._directory / INCOMING)
            if manifest.digest not in self._locations.get(manifest.round, ()):
                self._write(state, manifest)
            self._prune(now)

    def load_(self, state: PeerState, *, round: RoundId, run: Digest) -> None:
        """Read a state into `state`, which holds nothing of use if that fails.

        Raises:
            DamagedError: the files are not what was saved.
            RunError: they belong to another run.
        """
        manifest = self._manifest(round)
        folder = self._folder(round)
        if manifest.run != run:
            raise RunError(
                f"{folder} belongs to another run: {manifest.run}",
                hint="use another directory for this run",
            )
        assert manifest.num_values == state.num_values
        if not _read_(state, manifest, folder / STATE_FILE):
            raise _damaged(folder / STATE_FILE)
        state.round = round

    def locate(self, digest: Digest, *, now: float) -> Location | None:
        """Return where the bytes of this chunk or manifest are, if they are here.

        The folder may be pruned before they are read, and may be damaged: who gets them checks.
        """
        for round, locations in list(self._locations.items()):
            if digest in locations:
                self._used_at[round] = now
                return locations[digest]
        return None

    def arriving(self) -> Arriving | None:
        """Return the state that is worth to be gone on with, if it can still be had."""
        manifest, receiver = self._incoming, self._receiver
        if manifest is None:
            return None
        num_bytes = manifest.state_bytes
        if receiver is None or receiver.is_closed:
            try:
                num_bytes = _bytes_on_disk((self._directory / INCOMING / STATE_FILE).stat())
            except OSError:
                return None
        return Arriving(manifest.round, manifest.digest, num_bytes)

    def give_up(self) -> None:
        """Note that what has arrived is of a state that is not to be had any more."""
        self._incoming = None

    def begin_receive(
        self, manifest_bytes: Buffer, *, expect: Digest, run: Digest, num_values: int
    ) -> "StateReceiver":
        """Return a receiver for the chunks of the state named `expect`.

        What an earlier receiver was given of it is there already.

        Raises:
            BadBlobError: the bytes are not its manifest, or not one of this run.
            RunError: there is no room for the rest, or the disk cannot be written to.
        """
        if digest_of(manifest_bytes) != expect:
            raise BadBlobError("the manifest of a state is not the one that was asked for")
        manifest = parse_manifest(manifest_bytes)
        if (manifest.run, manifest.num_values) != (run, num_values):
            raise BadBlobError("the manifest of a state is one of another run")
        with disk_errors(self._directory):
            receiver = StateReceiver(self, manifest, self._directory / INCOMING)
        self._incoming, self._receiver = manifest, receiver
        return receiver

    def _write(self, state: PeerState, manifest: StateManifest) -> None:
        folder = self._temporary_folder()
        try:
            parts = (_header(manifest), *bytes_of(state, 0, manifest.state_bytes))
            write_synced(folder / STATE_FILE, parts)
            self._publish(folder, manifest)
        except OSError:
            remove(folder)
            raise

    def _publish(self, folder: Path, manifest: StateManifest) -> None:
        """Give a folder that has its state file the name of its round."""
        write_synced(folder / MANIFEST_FILE, [manifest.encoded()])
        sync(folder)
        self.discard(manifest.round)  # a state that the others did not agree to
        publish(folder, self._folder(manifest.round))
        self._index(manifest)

    def _prune(self, now: float) -> None:
        for round in self.rounds()[: -self._keep]:
            if now - self._used_at.get(round, -inf) > IN_USE_S:
                self.discard(round)

    def discard(self, round: RoundId) -> None:
        """Drop the state of this round, if it is here."""
        self._locations.pop(round, None)
        self._used_at.pop(round, None)
        folder = self._folder(round)
        if folder.exists():
            # Renamed first: a crash in the middle leaves no folder that looks like a state.
            remove(folder.replace(self._temporary_folder()))

    def _manifest(self, round: RoundId) -> StateManifest:
        """Return the manifest of a state whose two files belong together."""
        folder = self._folder(round)
        try:
            manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
        except (OSError, BadBlobError) as error:
            if is_refusal(error):
                raise
            raise _damaged(folder / MANIFEST_FILE) from error
        if manifest.round != round:
            raise _damaged(folder / MANIFEST_FILE)
        if not _begins_with(folder / STATE_FILE, _header(manifest)):
            raise _damaged(folder / STATE_FILE)
        return manifest

    def _index(self, manifest: StateManifest) -> None:
        folder = self._folder(manifest.round)
        data_start = len(_header(manifest))
        encoded = manifest.encoded()
        locations = {digest_of(encoded): Location(folder / MANIFEST_FILE, 0, len(encoded))}
        for index, digest in enumerate(manifest.chunks):
            start, stop = manifest.bounds(index)
            locations[digest] = Location(folder / STATE_FILE, data_start + start, stop - start)
        self._locations[manifest.round] = locations

    def _folder(self, round: RoundId) -> Path:
        return self._directory / f"{round:06}"

    def _temporary_folder(self) -> Path:
        folder = self._directory / f"{TEMPORARY}{next(self._numbers)}"
        folder.mkdir()  # no other process is here, and what a crash left was removed at the start
        return folder


class StateReceiver:
    """A state that arrives chunk by chunk, in any order, and then is one of the store's."""

    def __init__(self, store: StateStore, manifest: StateManifest, folder: Path) -> None:
        self.manifest = manifest
        self._store = store
        self._folder = folder
        self._lock = Lock()  # chunks may come from several threads
        header = _header(manifest)
        self._data_start = len(header)
        folder.mkdir(exist_ok=True)
        (folder / STATE_FILE).touch()
        self._file = (folder / STATE_FILE).open("r+b", buffering=0)
        try:
            # Each chunk has its place: what stays of another state is where it is needed.
            self._missing = {k for k in range(len(manifest.chunks)) if not self._has(k)}
            if len(self._missing) == len(manifest.chunks):
                self._file.truncate(0)  # so that what is on the disk is what is of use
            _make_room(self._file.fileno(), folder, self._data_start + manifest.state_bytes)
            self._file.truncate(self._data_start + manifest.state_bytes)
            self._file.seek(0)
            write_all(self._file, header)
            write_whole(folder / MANIFEST_FILE, manifest.encoded())
        except BaseException:
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    def missing(self) -> list[int]:
        """Return the chunks that are still to come; `manifest.chunks` has their digests."""
        return sorted(self._missing)

    def put(self, index: int, chunk: Buffer) -> None:
        """Keep a chunk.

        Raises:
            BadBlobError: it is not the one that the manifest names.
            RunError: the disk is full, or cannot be written to.
        """
        if digest_of(chunk) != self.manifest.chunks[index]:
            raise BadBlobError(f"chunk {index} of a state is not the one that was asked for")
        start, _ = self.manifest.bounds(index)
        with self._lock, disk_errors(self._folder):
            self._file.seek(self._data_start + start)
            write_all(self._file, chunk)
            self._missing.discard(index)

    def finish_(self, state: PeerState) -> None:
        """Make the whole state one of the store's, and read it into `state`.

        Raises:
            RunError: the disk is full, or cannot be written to.
        """
        assert not self._missing
        with disk_errors(self._folder):
            os.fsync(self._file.fileno())
            self._store._publish(self._folder, self.manifest)
        self._store.give_up()  # nothing is arriving any more
        self.close()
        self._store.load_(state, round=self.manifest.round, run=self.manifest.run)

    def close(self) -> None:
        """Stop for now; what has arrived stays for the next receiver."""
        self._file.close()

    def _has(self, index: int) -> bool:
        start, stop = self.manifest.bounds(index)
        self._file.seek(self._data_start + start)
        try:
            content = self._file.read(stop - start)
        except OSError:  # a sector that cannot be read: the chunk is written anew
            return False
        # What lies beyond the end of the file will be zeros: so is a momentum that nobody moved.
        found = digest_of(content) if content else _digest_of_zeros(stop - start)
        return found == self.manifest.chunks[index]


@lru_cache(maxsize=2)  # all chunks of a state are of one size but the last
def _digest_of_zeros(num_bytes: int) -> Digest:
    return digest_of(bytes(num_bytes))


def _make_room(descriptor: int, folder: Path, num_bytes: int) -> None:
    """Raise RunError if the file, of which only parts may be on the disk, cannot grow to this."""
    on_disk = _bytes_on_disk(os.fstat(descriptor))
    lacking, free = num_bytes - on_disk, shutil.disk_usage(folder).free
    if free < lacking:
        raise RunError(
            f"the rest of the state takes {format_bytes(lacking)}, and {format_bytes(free)} "
            f"are free in {folder}",
            hint="make room there, and start again: what has arrived is kept",
        )


def _bytes_on_disk(status: os.stat_result) -> int:
    """Return how much of a file is there; parts that nobody has written take no place."""
    return 512 * getattr(status, "st_blocks", status.st_size // 512)  # not on every system


def _read_(state: PeerState, manifest: StateManifest, path: Path) -> bool:
    """Read all chunks into `state`; return whether they, and no more, were there."""
    try:
        with path.open("rb") as file:
            file.seek(len(_header(manifest)))
            for index, digest in enumerate(manifest.chunks):
                parts = bytes_of(state, *manifest.bounds(index))
                num_read = sum(file.readinto(part) for part in parts)
                if num_read != sum(map(len, parts)) or digest_of(*parts) != digest:
                    return False
            return not file.read(1)
    except OSError as error:  # a sector that cannot be read is damage, too
        if is_refusal(error):
            raise
        return False


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError as error:
        if is_refusal(error):
            raise
        return False


def _header(manifest: StateManifest) -> bytes:
    """Return how a safetensors file begins that holds the state and the name of its manifest."""
    border = manifest.state_bytes // 2
    tensor = {"dtype": "F32", "shape": [manifest.num_values]}
    entries = {
        "__metadata__": {"manifest": manifest.digest},
        "momentum": {**tensor, "data_offsets": [0, border]},
        "params": {**tensor, "data_offsets": [border, 2 * border]},
    }
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)  # the data is aligned
    return len(text).to_bytes(8, "little") + text


def _damaged(path: Path) -> DamagedError:
    return DamagedError(
        f"{path} is damaged",
        hint=f"delete the folder {path.parent}: the state will be fetched from other peers",
    )
