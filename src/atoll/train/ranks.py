"""The other ranks of a peer with several devices: trainers that follow this one, rank 0.

    agent <-- channel --> rank 0 <-- the same messages, a socket each --> rank 1, 2, ...

To a follower, rank 0 is the agent: it gets each command that rank 0 obeys, in the same order, and a
`Train` for each single step, so that all ranks do the same between the same two steps. Its answers
say when it is done.

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
from atoll.errors import ConnectionLost
from atoll.train.channel import (
    Answer,
    Failed,
    FollowerLine,
    Quit,
    Seat,
    Setup,
    Stepped,
    ToTrainer,
    Trained,
)

STOP_S: Final = 2.0
OnEnd = Callable[[Failed], None]


class Follower:
    """A rank's process, and our end of the line to it."""

    def __init__(self, setup: Setup, seat: Seat) -> None:
        self.rank = seat.rank
        ours, theirs = socket.socketpair()
        with theirs:
            # What it says goes where our own words go: to the trainer's log.
            command = [sys.executable, "-P", "-m", "atoll.train.follower"]
            self.process = system.start_with_line(command, theirs)
        self.line = FollowerLine(ours, rank=seat.rank)
        self._answers: defaultdict[type[Answer], queue.SimpleQueue[None]] = defaultdict(
            queue.SimpleQueue
        )
        self._dealing = Lock()
        self.line.send(replace(setup, seat=seat))

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
        return Failed(reason=f"rank {self.rank} of the trainer {self._end()}", hint="")

    def wait_for(self, answer: type[Answer]) -> None:
        """Return when it has given that answer once more; never, if it has ended: so do we then."""
        self._answered(answer).get()

    def _answered(self, answer: type[Answer]) -> "queue.SimpleQueue[None]":
        with self._dealing:
            return self._answers[answer]

    def _end(self) -> str:
        try:
            code = self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            return "has closed its line"
        if code < 0:
            return f"was ended by a signal: {signal.strsignal(-code)}"
        return f"ended with exit code {code}"


class Followers:
    """All ranks but ours; none, where there is one device.

    A context: at its end they are gone.
    """

    def __init__(self, setup: Setup, num_ranks: int, *, on_end: OnEnd) -> None:
        """Start them. `on_end` is called, by another thread, when one ends that should not."""
        self.seat: Seat | None = None  # ours
        self._on_end = on_end
        self._is_closing = False
        self._has_ended = Event()  # one of them
        self._all: list[Follower] = []
        if num_ranks > 1:
            self._store = _meeting_place(setup)
            self.seat = Seat(rank=0, num_ranks=num_ranks, store=str(self._store))
            self._all = [Follower(setup, replace(self.seat, rank=r)) for r in range(1, num_ranks)]
        self._watching = [Thread(target=self._watch, args=(f,), daemon=True) for f in self._all]
        for thread in self._watching:
            thread.start()

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
            try:
                follower.process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                follower.process.kill()
                follower.process.wait()
            follower.line.close()
        if self._all:
            self._store.unlink(missing_ok=True)


def _meeting_place(setup: Setup) -> Path:
    """Return a file that is not there yet; one of an earlier life is removed."""
    place = Path(setup.peer.directory) / "trainer.ranks"
    place.unlink(missing_ok=True)
    return place


def end_with(connection: socket.socket) -> None:
    """End this process when the other end is gone, whatever it is waiting for just then."""
    poll = select.poll()
    poll.register(connection, 0)  # that an end is gone is told in any case

    def watch() -> None:
        poll.poll()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
