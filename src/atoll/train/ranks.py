"""The other ranks of a peer with several devices: trainers that follow this one, rank 0.

    agent <-- channel --> rank 0 <-- the same messages, a socket each --> rank 1, 2, ...

To a follower, rank 0 is the agent: it gets each command that rank 0 obeys, in the same order, and a
`Train` for each single step, so that all ranks do the same between the same two steps. Its answers
say when it is done.

Over several machines (see `machines`) it is a tree: the first rank of each machine starts the other
ones there and leads them, as rank 0 leads the first ranks.

                 rank 0 --> rank 1                     and where each machine has 2 devices:
    line through the agent `--> rank 2 --> rank 3      ranks 2 and 3 are on the second one

Whoever dies takes the others along: a follower ends when its socket does, and rank 0 ends when a
follower has. The agent then starts all of them again.
"""

import os
import queue
import select
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Final

from msgspec.structs import replace

from atoll import system
from atoll.errors import ConfigError, ConnectionLost
from atoll.train.channel import (
    Answer,
    Failed,
    FollowerLine,
    Quit,
    Seat,
    Setup,
    Site,
    Stepped,
    ToTrainer,
    Trained,
    dial,
)

STOP_S: Final = 2.0
OnEnd = Callable[[Failed], None]


class Follower:
    """Our end of the line to a rank, and its process, if that is on this machine."""

    def __init__(
        self, seat: Seat, connection: socket.socket, process: "subprocess.Popen[bytes] | None"
    ) -> None:
        self.seat = seat
        self.line = FollowerLine(connection, rank=seat.rank)
        self._process = process
        self._answers: defaultdict[type[Answer], queue.SimpleQueue[None]] = defaultdict(
            queue.SimpleQueue
        )
        self._dealing = Lock()

    @classmethod
    def started(cls, seat: Seat) -> "Follower":
        """Return a new process."""
        connection, process = start_process()
        return cls(seat, connection, process)

    def close(self) -> None:
        """See to it that it ends, if it was not told to: with its line it does."""
        if self._process is not None:
            try:
                self._process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.line.close()

    def listen(self) -> Failed:
        """Note its answers until it has ended; return why."""
        with suppress(ConnectionLost):
            while True:
                match self.line.receive():
                    case Failed() as failed:
                        return failed
                    case Stepped() | Trained():
                        pass  # rank 0 has its own, of the same step
                    case answer:
                        assert isinstance(answer, Answer)
                        self._answered(type(answer)).put(None)
        return Failed(reason=f"rank {self.seat.rank} of the trainer {self._end()}", hint="")

    def wait_for(self, answer: type[Answer]) -> None:
        """Return when it has given that answer once more; never, if it has ended: so do we then."""
        self._answered(answer).get()

    def _answered(self, answer: type[Answer]) -> "queue.SimpleQueue[None]":
        with self._dealing:
            return self._answers[answer]

    def _end(self) -> str:
        if self._process is None:
            return "has closed its line"
        try:
            return how_it_ended(self._process.wait(timeout=STOP_S))
        except subprocess.TimeoutExpired:
            return "has closed its line"


class Followers:
    """All ranks but ours; none, where there is one device.

    A context: at its end they are gone.
    """

    def __init__(self, setup: Setup, num_devices: int, *, on_end: OnEnd) -> None:
        """Start those of this machine, and call those that lead on others.

        `on_end` is called, by another thread, when one ends that should not.

        Raises:
            ConfigError: the first machine of the peer has another number of devices.
        """
        self.listening: socket.socket | None = None  # where the ranks of several machines meet
        self._store: Path | None = None  # where those of one do
        self._on_end = on_end
        self._is_closing = False
        self._has_ended = Event()  # one of them
        self.seat = setup.seat or self._first_seat(setup, num_devices)  # ours; None: no others
        self._all = [] if self.seat is None else self._start(setup, self.seat, num_devices)
        self._watching = [Thread(target=self._watch, args=(f,), daemon=True) for f in self._all]
        for thread in self._watching:
            thread.start()

    def _first_seat(self, setup: Setup, num_devices: int) -> Seat | None:
        if setup.site is not None and setup.site.others:
            self.listening = socket.create_server((setup.site.address, 0))
            num_machines = 1 + len(setup.site.others)
            return Seat(
                rank=0,
                num_ranks=num_machines * num_devices,
                store=f"{setup.site.address}:{self.listening.getsockname()[1]}",
                num_machines=num_machines,
            )
        if num_devices > 1:
            self._store = _meeting_place(setup)
            return Seat(rank=0, num_ranks=num_devices, store=str(self._store))
        return None

    def _start(self, setup: Setup, seat: Seat, num_devices: int) -> list[Follower]:
        if num_devices != seat.num_devices:
            raise ConfigError(
                f"it has {num_devices} devices, where the first machine has {seat.num_devices}",
                hint="give each machine of the peer the same number with --devices",
            )
        ours = range(seat.rank + 1, seat.rank + num_devices) if seat.device == 0 else ()
        found = [Follower.started(replace(seat, rank=rank)) for rank in ours]
        # On another machine, whoever holds the line knows the address that it has there.
        others = () if seat.rank or setup.site is None else setup.site.others
        for machine, address in enumerate(others, start=1):
            found.append(Follower(replace(seat, rank=machine * num_devices), dial(address), None))
        for follower in found:
            site = setup.site and Site(address=setup.site.address)
            follower.line.send(replace(setup, seat=follower.seat, site=site))
        return found

    def __len__(self) -> int:
        return len(self._all)

    def __enter__(self) -> "Followers":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # What a collective says of a rank that has died is less than what we know of its end.
        if isinstance(error, RuntimeError) and self._all and self._has_ended.wait(STOP_S):
            for thread in self._watching:
                thread.join(STOP_S)
        self._close()

    def tell(self, command: ToTrainer) -> None:
        for follower in self._all:
            with suppress(ConnectionLost):  # whoever watches it knows, and ends us
                follower.line.send(command)

    def wait_for(self, answer: type[Answer]) -> None:
        """Return when each has given that answer."""
        for follower in self._all:
            follower.wait_for(answer)

    def _watch(self, follower: Follower) -> None:
        failed = follower.listen()
        if not self._is_closing:
            self._has_ended.set()
            self._on_end(failed)

    def _close(self) -> None:
        """End them all; they have nothing to save."""
        self._is_closing = True
        self.tell(Quit())
        for follower in self._all:
            follower.close()
        if self._store is not None:
            self._store.unlink(missing_ok=True)


def _meeting_place(setup: Setup) -> Path:
    """Return a file that is not there yet; one of an earlier life is removed."""
    place = Path(setup.peer.directory) / "trainer.ranks"
    place.unlink(missing_ok=True)
    return place


def start_process() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """Return a new process that follows whoever is at the end of this line, our end."""
    ours, theirs = socket.socketpair()
    with theirs:
        # What it says goes where our own words go: to the trainer's log.
        command = [sys.executable, "-P", "-m", "atoll.train.follower"]
        return ours, system.start_with_line(command, theirs)


def how_it_ended(exit_code: int) -> str:
    if exit_code < 0:
        return f"was ended by a signal: {signal.strsignal(-exit_code)}"
    return f"ended with exit code {exit_code}"


def end_with(connection: socket.socket) -> None:
    """End this process when the other end is gone, whatever it is waiting for just then."""
    poll = select.poll()
    poll.register(connection, 0)  # that an end is gone is told in any case

    def watch() -> None:
        poll.poll()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
