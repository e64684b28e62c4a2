"""Commands of atoll as processes beside this one: started, listened to, and ended.

What such a process has to say is in the `events.jsonl` of its directory, for all to read.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import Final

from atoll import system
from atoll.clock import monotonic_s

LEAVE_S: Final = 15.0  # for a process to end by itself: it leaves the run, and stops its trainer
POLL_S: Final = 0.1


class Process:
    """One command, which lives in `directory`. It may be killed, and started again."""

    def __init__(self, name: str, arguments: Sequence[str], *, directory: Path) -> None:
        self.name = name
        self.log = directory / "output.log"
        self._arguments = arguments
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "atoll.cli.main", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **system.apart(),  # Ctrl-C is for us: we end it in order
            )

    @property
    def pid(self) -> int | None:
        """The id of the newest process; None: it was not started."""
        return None if self._popen is None else self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None: it was not started, or still runs."""
        return None if self._popen is None else self._popen.poll()

    @property
    def last_words(self) -> str:
        """The error that it ended with, or else the last line that it wrote."""
        written = (
            self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        )
        lines = [line.strip() for line in written.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or ["it said nothing"])[-1]

    def interrupt(self) -> None:
        """Ask it to end, now but in order."""
        if self._popen is not None and self.is_running:
            system.ask_to_end(self._popen)

    def kill(self) -> None:
        """End it as a power failure does."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()


def wait_for_end(processes: Sequence[Process], *, seconds: float) -> None:
    """Return once all of them have ended, or after so many seconds."""
    deadline = monotonic_s() + seconds
    while any(process.is_running for process in processes) and monotonic_s() < deadline:
        sleep(POLL_S)


def end(processes: Sequence[Process]) -> None:
    """End those that still run: in order, and by force where that is not enough.

    A Ctrl-C that comes meanwhile is not heard, so that nothing outlives us.
    """
    hearing = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for process in processes:
            process.interrupt()
        wait_for_end(processes, seconds=LEAVE_S)
        for process in processes:
            process.kill()
    finally:
        signal.signal(signal.SIGINT, hearing)
