"""The directory of one peer, and what it remembers from one start to the next.

run.json        what the run is, and where its host     identity.pem   our key and certificate
states/000012/  the last committed states               blobs/         updates of the last rounds
initial/        the weights that the config names, until there is a state after them
commits/000012  the commits that name those updates     inner/000012   the inner optimizer
events.jsonl    what happened                           trainer.log    what the trainer printed
led             the newest leader that we have followed
dataset         which data set the run is on            tokenizer.json of it, if we only read
"""

from pathlib import Path

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct
from msgspec.structs import replace

from atoll.config import RunConfig, run_digest
from atoll.data.manifest import TOKENIZER_FILE
from atoll.durable import disk_errors, write_whole
from atoll.errors import DamagedError, ProtocolError, RunError
from atoll.exchange.blobs import BlobStore
from atoll.exchange.initial import INITIAL_FOLDER
from atoll.exchange.statesync import ARRIVING_INNER
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.net import records, wire
from atoll.net.identity import Identity, public_key_of
from atoll.outer.checkpoint import StateStore

DATASET_FILE = "dataset"
LED_FILE = "led"
KEEP_ROUNDS = 9  # of the updates of a fragment: as many as a peer may replay, and one


class RunFile(Struct, frozen=True, kw_only=True):
    """What enrolment told us, and where other hosts are by now."""

    config: RunConfig
    host: str
    port: int
    host_id: PeerId
    built_in: PeerId
    others: tuple[wire.HostAddress, ...] = ()


class Home:
    """The opened directory: one process at a time.

    `initial` is where the weights that the run begins with are kept for good; None: nowhere.
    """

    def __init__(self, directory: Path, *, keep_states: int, initial: Path | None = None) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = locked(directory)
        self.identity = Identity.load(directory)
        self.run_file = read_run_file(directory)
        self.run: Digest = run_digest(self.run_file.config)
        self.host_key = public_key_of(self.identity.authority)
        self.states = StateStore(directory / "states", keep=keep_states)
        self.initial: StateStore | None = None  # where the config names no weights
        self._keeps_initial = initial is not None
        if self.config.initial:
            self.initial = StateStore(initial or directory / INITIAL_FOLDER, keep=1)
        # A turn is an outer step: as many as there are rounds open may come before the commit.
        in_flight = self.config.sync.in_flight
        self.blobs = BlobStore(directory / "blobs", young_turns=in_flight)
        self._commits = directory / "commits"
        self._commits.mkdir(exist_ok=True)
        (directory / "inner").mkdir(exist_ok=True)
        self._lent_inner: Path | None = None

    @property
    def config(self) -> RunConfig:
        return self.run_file.config

    @property
    def can_begin(self) -> bool:
        """Return whether there is a state here, or all that makes state 0."""
        return self.initial is None or bool(self.states.rounds() or self.initial.rounds())

    def forget_initial(self) -> None:
        """Drop the weights that the run began with: there is a newer state by now.

        Raises:
            RunError: the disk cannot be written to.
        """
        if self.initial is not None and not self._keeps_initial:
            with disk_errors(self.directory):
                self.initial.discard(INITIAL)

    def arriving(self) -> wire.Arriving | None:
        """Return of which state a part is here, if one was being fetched and is to be had."""
        found = self.states.arriving()
        if found is None:
            return None
        return wire.Arriving(round=found.round, state=found.digest, num_bytes=found.num_bytes)

    def commits(self) -> dict[RoundId, records.Heard]:
        """Return the commits whose updates are kept.

        Raises:
            DamagedError: one is not what was written.
        """
        kept: dict[RoundId, records.Heard] = {}
        for path in sorted(self._commits.iterdir()):
            if not path.name.isdecimal():
                path.unlink()  # half-written when a process was killed
                continue
            try:
                message = wire.decode(path.read_bytes())
                assert isinstance(message, wire.Commit)
                record = records.committed(message, public_key=self.host_key)
            except (ProtocolError, AssertionError) as error:
                raise DamagedError(f"{path} is damaged", hint="delete that file") from error
            kept[record.round] = record
        return kept

    def keep_commit(self, message: wire.Commit) -> records.Heard:
        """Remember a commit, so that its updates can be told from those of rounds long past.

        Raises:
            RunError: the disk is full.
        """
        record = records.committed(message, public_key=self.host_key)
        path = self._commits / f"{record.round:06}"
        write_whole(path, wire.encode(message))
        return record

    def forget_before(self, oldest: RoundId, kept: dict[RoundId, records.Heard]) -> None:
        """Drop the commits before `oldest`, and the updates that no kept commit names.

        Updates of the open round are named by none yet; they are too young to go.
        """
        for round_id in [round_id for round_id in kept if round_id < oldest]:
            del kept[round_id]
            (self._commits / f"{round_id:06}").unlink(missing_ok=True)
        self.blobs.sweep({update.digest for heard in kept.values() for update in heard.updates})

    def led(self) -> wire.Commit | None:
        """Return the record of the newest leader that we have followed.

        Raises:
            DamagedError: it is not what was written.
        """
        path = self.directory / LED_FILE
        if not path.exists():
            return None
        try:
            message = wire.decode(path.read_bytes())
            assert isinstance(message, wire.Commit)
            records.led(message, public_key=self.host_key)
        except (ProtocolError, AssertionError) as error:
            hint = "delete that file, if no other host has led the run since"
            raise DamagedError(f"{path} is damaged", hint=hint) from error
        return message

    def remember_leader(self, message: wire.Leader) -> None:
        """Note whom we follow, and where its standbys are.

        Raises:
            RunError: the disk is full.
        """
        if message.led != self.led():
            write_whole(self.directory / LED_FILE, wire.encode(message.led))
        if message.hosts != self.run_file.others:
            self.run_file = replace(self.run_file, others=message.hosts)
            write_run_file(self.directory, self.run_file)

    def remember_dataset(self, digest: Digest) -> None:
        """Note which dataset the run is on: who writes with the model needs its tokenizer.

        Raises:
            RunError: the disk is full.
        """
        write_whole(self.directory / DATASET_FILE, digest.encode())

    def remember_tokenizer(self, content: bytes) -> None:
        """Keep the tokenizer of a data set that is not on this machine.

        Raises:
            RunError: the disk is full.
        """
        write_whole(self.directory / TOKENIZER_FILE, content)

    def inner_path(self, round_id: RoundId) -> Path:
        """Return where the inner optimizer's state after the merge of that round is kept."""
        return self.directory / "inner" / f"{round_id:06}.safetensors"

    def newest_inner(self, round_id: RoundId | None = None) -> Path | None:
        """Return what is kept of the inner optimizer up to that round, or up to now."""
        kept = [p for p in (self.directory / "inner").iterdir() if p.stem.isdecimal()]
        newest = None if round_id is None else self.inner_path(round_id)
        return max((p for p in kept if newest is None or p <= newest), default=None)

    def lend_inner(self, path: Path) -> None:
        """Keep this one for joiners from now on, though it may be an old one soon."""
        self._lent_inner = path

    def forget_inner_before(self, round_id: RoundId) -> None:
        oldest = self.inner_path(round_id)
        for path in oldest.parent.iterdir():
            is_old = path < oldest and path != self._lent_inner
            if is_old or path.name == ARRIVING_INNER:  # of another one: we have our own
                path.unlink()

    def close(self) -> None:
        self._lock.release()


def write_run_file(directory: Path, run_file: RunFile) -> None:
    """Remember what enrolment told us.

    Raises:
        RunError: the disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "run.json", msgspec.json.encode(run_file))


def locked(directory: Path) -> FileLock:
    """Return the lock of a peer's directory, which is ours now.

    Raises:
        RunError: another process has it.
    """
    lock = FileLock(directory / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"another process uses {directory}",
            hint="stop it first, or give this peer a directory of its own with --dir",
        ) from None
    return lock


def read_run_file(directory: Path) -> RunFile:
    """Return what enrolment told us.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    path = directory / "run.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunFile)
    except FileNotFoundError:
        raise RunError(
            f"{directory} belongs to no run", hint="join one with the invite that its host printed"
        ) from None
    except msgspec.DecodeError as error:
        raise DamagedError(
            f"{path} is damaged: {error}", hint="delete the directory and join again with an invite"
        ) from error
