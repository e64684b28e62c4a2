"""Facts that the processes of a run report. A log line, a chart and an assertion are renderings.

Each process appends its own to `events.jsonl` in its directory, one JSON object a line, stamped
with the wall clock for people to read (`at`). When that is large, it is put aside as
`events.1.jsonl`, in place of the one before: nothing depends on what happened long ago.
"""

from collections.abc import Callable
from contextlib import suppress
from errno import ENOSPC
from io import SEEK_END, FileIO
from mmap import ACCESS_READ, mmap
from os import strerror
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from atoll.clock import wall_s
from atoll.errors import RunError
from atoll.ids import Digest, PeerId, RoundId
from atoll.traffic import Traffic
from atoll.units import MIB

MOST_BYTES: Final = 256 * MIB  # of a log, before it is put aside


class HostStarted(Struct, frozen=True, kw_only=True, tag="host_started"):
    """A host leads from now on."""

    run: str
    address: str
    committed: RoundId
    epoch: int = 0


class HostStandsBy(Struct, frozen=True, kw_only=True, tag="host_stands_by"):
    """A host follows the journal, and takes the lead when there is none."""

    address: str


class DashboardServed(Struct, frozen=True, kw_only=True, tag="dashboard_served"):
    """Where this host shows the run to whoever opens it in a browser."""

    url: str


class PeerJoined(Struct, frozen=True, kw_only=True, tag="peer_joined"):
    """A peer has a control connection to the host."""

    peer: PeerId
    name: str
    device: str
    reachable: bool
    place: str = ""
    trains: bool = True  # False: it reads along, as `atoll chat` does
    peak_flops: float = 0.0  # per second, of its devices, as it says; 0: unknown


class PeerLeft(Struct, frozen=True, kw_only=True, tag="peer_left"):
    peer: PeerId
    name: str
    reason: str


class PeerRests(Struct, frozen=True, kw_only=True, tag="peer_rests"):
    """A peer was paused by its owner, or goes on; the host says so, and the peer itself.

    `why`: what the peer waits for, if it was not its owner.
    """

    peer: PeerId
    name: str
    rests: bool
    why: str = ""


class RoundPlanned(Struct, frozen=True, kw_only=True, tag="round_planned"):
    """Also reported when the open round is planned again, for another set of reducers."""

    round: RoundId
    peers: tuple[PeerId, ...]
    reducers: tuple[PeerId, ...]
    reason: str


class RoundClosed(Struct, frozen=True, kw_only=True, tag="round_closed"):
    round: RoundId
    roster: tuple[PeerId, ...]
    missing: tuple[PeerId, ...]
    reason: str


class RoundCommitted(Struct, frozen=True, kw_only=True, tag="round_committed"):
    """`seconds`: since the round was opened; `exchange_s` of them since its last claim."""

    round: RoundId
    roster: tuple[PeerId, ...]
    num_tokens: int
    mean_loss: float
    update_bytes: int
    seconds: float
    exchange_s: float = 0.0


class StateAgreed(Struct, frozen=True, kw_only=True, tag="state_agreed"):
    round: RoundId
    digest: Digest
    peers: tuple[PeerId, ...]


class StateDiffers(Struct, frozen=True, kw_only=True, tag="state_differs"):
    round: RoundId
    peer: PeerId
    digest: Digest
    agreed: Digest


class Evaluated(Struct, frozen=True, kw_only=True, tag="evaluated"):
    """A peer says how good a committed state is: validation loss, and a text that it writes."""

    round: RoundId
    peer: PeerId
    loss: float
    text: str


class RunPaused(Struct, frozen=True, kw_only=True, tag="run_paused"):
    """The operator lets no new round begin; those that are open go on."""


class RunResumed(Struct, frozen=True, kw_only=True, tag="run_resumed"):
    """Rounds begin again."""


class ReducersChosen(Struct, frozen=True, kw_only=True, tag="reducers_chosen"):
    """The operator has said who averages from the next round on; empty: all that can."""

    peers: tuple[PeerId, ...]


class Training(Struct, frozen=True, kw_only=True, tag="training"):
    """How far a peer is in its inner steps; at most a few times a second."""

    peer: PeerId
    round: RoundId
    step: int
    loss: float
    tokens_per_s: float


class PhaseTimed(Struct, frozen=True, kw_only=True, tag="phase_timed"):
    """How long one phase of a round took on this peer: snapshot, encode, send, reduce, ...

    `steps`: in inner steps, of whichever round, since the outer step before that of `round`.
    """

    round: RoundId
    phase: str
    seconds: float


class BytesMoved(Struct, frozen=True, kw_only=True, tag="bytes_moved"):
    """What this member has sent and received since the outer step before that of `round`.

    The last one, when it leaves, tells what it moved since the outer step of `round`.
    `bits` are those that it sent for contributions and updates, for each parameter and inner step.
    """

    round: RoundId
    traffic: Traffic
    bits: float


class Connected(Struct, frozen=True, kw_only=True, tag="connected"):
    """This member has a connection to the host, which leads and has welcomed it."""

    host: str
    committed: RoundId


class Disconnected(Struct, frozen=True, kw_only=True, tag="disconnected"):
    """This member has no connection to a host that welcomes it, and goes on trying."""

    reason: str


class Downloading(Struct, frozen=True, kw_only=True, tag="downloading"):
    """How far a download is, now and then; what was on disk before is not counted."""

    what: str
    num_bytes: int
    total_bytes: int


class RoundTaken(Struct, frozen=True, kw_only=True, tag="round_taken"):
    """This member has taken the outer step of a round, with what the round has of its own work.

    The tokens are 0 where it has none. `total_tokens` are those of this peer in the whole run.
    """

    round: RoundId
    num_contributors: int
    num_tokens: int = 0
    round_tokens: int = 0
    total_tokens: int = 0


class StateSynced(Struct, frozen=True, kw_only=True, tag="state_synced"):
    """A peer has fetched a whole committed state, or replayed updates up to it.

    `num_bytes` came now; `kept_bytes` had arrived before, and were on its disk.
    """

    round: RoundId
    how: str
    num_bytes: int
    kept_bytes: int = 0
    seconds: float


class MomentsFetched(Struct, frozen=True, kw_only=True, tag="moments_fetched"):
    """A joiner has taken over the moments of the inner optimizer of this peer."""

    peer: PeerId
    num_bytes: int
    seconds: float


class MachineCame(Struct, frozen=True, kw_only=True, tag="machine_came"):
    """Another machine of this peer is there; so many are still missing."""

    name: str
    num_missing: int


class MachineLost(Struct, frozen=True, kw_only=True, tag="machine_lost"):
    """Another machine of this peer is gone."""

    name: str
    reason: str


class TrainerStarted(Struct, frozen=True, kw_only=True, tag="trainer_started"):
    pid: int
    device: str


class TrainerDied(Struct, frozen=True, kw_only=True, tag="trainer_died"):
    reason: str
    in_a_row: int


class Warned(Struct, frozen=True, kw_only=True, tag="warned"):
    """Something a person should know, that the process could deal with by itself."""

    text: str
    hint: str = ""  # what the person can do, or need not do


class Stopped(Struct, frozen=True, kw_only=True, tag="stopped"):
    reason: str


Event: TypeAlias = (
    HostStarted
    | HostStandsBy
    | DashboardServed
    | PeerJoined
    | PeerLeft
    | PeerRests
    | RoundPlanned
    | RoundClosed
    | RoundCommitted
    | StateAgreed
    | StateDiffers
    | Evaluated
    | RunPaused
    | RunResumed
    | ReducersChosen
    | Training
    | PhaseTimed
    | BytesMoved
    | Connected
    | Disconnected
    | Downloading
    | RoundTaken
    | StateSynced
    | MomentsFetched
    | MachineCame
    | MachineLost
    | TrainerStarted
    | TrainerDied
    | Warned
    | Stopped
)
Emit: TypeAlias = Callable[[Event], None]


class Stamped(Struct, frozen=True, kw_only=True):
    """A line of `events.jsonl`."""

    at: float
    event: Event


_decoder = msgspec.json.Decoder(Stamped)


class EventLog:
    """Appends events to a file, and hands each to `show` for the terminal.

    Those of the `passing` kinds, of which there are many, are only shown.
    """

    def __init__(
        self,
        path: Path,
        *,
        show: Emit,
        passing: tuple[type[Event], ...] = (),
        most_bytes: int = MOST_BYTES,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = FileIO(path, "a+")
        _cut_torn_line(self._file)
        self._num_bytes = self._file.seek(0, SEEK_END)
        self._most_bytes = most_bytes
        self._show = show
        self._passing = passing

    def emit(self, event: Event) -> None:
        """Append the event, and show it.

        Raises:
            RunError: the disk is full.
        """
        if not isinstance(event, self._passing):
            self._write(event)
        self._show(event)

    def _write(self, event: Event) -> None:
        line = msgspec.json.encode(Stamped(at=wall_s(), event=event)) + b"\n"
        try:
            if self._num_bytes and self._num_bytes + len(line) > self._most_bytes:
                self._put_aside()
            self._append(line)
        except OSError as error:
            raise RunError(
                f"cannot write {self._path}: {error.strerror}",
                hint="make room on the disk and start again; what was committed is safe",
            ) from error
        self._num_bytes += len(line)

    def _append(self, line: bytes) -> None:
        """Write the whole line or, on a disk that fills up with it, nothing of it.

        Half a line would take the next one with it, once there is room again.
        """
        if self._file.write(line) != len(line):
            self._file.truncate(self._num_bytes)
            raise OSError(ENOSPC, strerror(ENOSPC))

    def _put_aside(self) -> None:
        self._file.close()
        with suppress(PermissionError):  # on Windows, while somebody reads it: then the next time
            self._path.replace(put_aside(self._path))
        self._file = FileIO(self._path, "a+")
        self._num_bytes = self._file.seek(0, SEEK_END)

    def close(self) -> None:
        self._file.close()


def put_aside(path: Path) -> Path:
    """Return where the events are that came before those of this log."""
    return path.with_name(f"{path.stem}.1{path.suffix}")


def _cut_torn_line(file: FileIO) -> None:
    """Remove what a full disk, or a crash, has left of a last line."""
    if file.seek(0, SEEK_END):
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
        file.truncate(whole)


def newest_events(path: Path, *, num_bytes: int) -> list[Stamped]:
    """Return the whole lines among the last `num_bytes` of the log."""
    newest = _last_lines(path, num_bytes=num_bytes)
    size = path.stat().st_size if path.exists() else 0
    return [*_last_lines(put_aside(path), num_bytes=num_bytes - size), *newest]


def _last_lines(path: Path, *, num_bytes: int) -> list[Stamped]:
    if num_bytes <= 0 or not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, SEEK_END)
        file.seek(max(0, size - num_bytes))
        if file.tell():
            file.readline()  # the end of a line
        start = file.tell()
    return read_events(path, offset=start)[0]


class GrowingLog:
    """The events of a log from its beginning, in turns, while another process writes to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None  # which file the offset is of
        self._offset = 0

    def read(self) -> list[Stamped]:
        """Return the events that came since the last time."""
        earlier: list[Stamped] = []
        file = self._path.stat().st_ino if self._path.exists() else None
        if file != self._file:  # it was put aside, or this is the first time
            earlier, _ = read_events(put_aside(self._path), offset=self._offset)
            self._file, self._offset = file, 0
        newer, self._offset = read_events(self._path, offset=self._offset)
        return earlier + newer


def read_events(path: Path, *, offset: int = 0) -> tuple[list[Stamped], int]:
    """Return the whole lines of the file from byte `offset` on, and where the next ones start."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read().split(b"\n")
    whole, rest = lines[:-1], lines[-1]
    end = offset + sum(len(line) + 1 for line in lines) - 1 - len(rest)
    return [_decoder.decode(line) for line in whole if line], end
