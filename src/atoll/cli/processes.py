"""Commands of atoll as processes beside this one: started, listened to, and ended.

What such a process has to say comes from the `events.jsonl` in its directory, like for anybody else.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Final

from atoll.clock import monotonic_s
from atoll.events import Stamped, TrainerStarted, read_events

LEAVE_S: Final = 15.0  # for a process to end by itself: it leaves the run, and stops its trainer
POLL_S: Final = 0.1


class Process:
    """One command, whose events are in `directory`. It may be killed, and started again."""

    def __init__(self, name: str, arguments: Sequence[str], *, directory: Path) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.directory = directory
        self.log = directory / "output.log"
        self.was_killed = False
        self._popen: subprocess.Popen[bytes] | None = None
        self._events_read = 0  # bytes
        self._trainer: int | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.was_killed = False
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "atoll.cli.main", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we end it in order
            )

    @property
    def has_started(self) -> bool:
        return self._popen is not None

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def has_failed(self) -> bool:
        """Whether it has ended by itself, and not well."""
        return (
            self._popen is not None and self._popen.poll() not in (None, 0) and not self.was_killed
        )

    def news(self) -> list[Stamped]:
        """Return what it has reported since the last call."""
        lines, self._events_read = read_events(
            self.directory / "events.jsonl", offset=self._events_read
        )
        for line in lines:
            if isinstance(line.event, TrainerStarted):
                self._trainer = line.event.pid
        return lines

    def kill(self) -> None:
        """End it and its trainer as a power failure does."""
        self.was_killed = True
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
        self.kill_trainer()

    def kill_trainer(self) -> None:
        """End its trainer, if it has reported one."""
        if self._trainer is not None:
            with suppress(ProcessLookupError):
                os.kill(self._trainer, signal.SIGKILL)
            self._trainer = None

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        if self._popen is not None and self.is_running:
            self._popen.send_signal(signal.SIGINT)


def wait_for_end(processes: Sequence[Process], *, seconds: float) -> bool:
    """Return whether all of them have ended by then."""
    deadline = monotonic_s() + seconds
    while any(process.is_running for process in processes):
        if monotonic_s() > deadline:
            return False
        sleep(POLL_S)
    return True


def end(processes: Sequence[Process]) -> None:
    """End those that still run: with Ctrl-C, and by force where that is not enough."""
    for process in processes:
        process.interrupt()
    if not wait_for_end(processes, seconds=LEAVE_S):
        for process in processes:
            if process.is_running:
                process.kill()
