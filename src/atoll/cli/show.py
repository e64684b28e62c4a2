"""Events as lines for people, and progress on the terminal."""

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from statistics import fmean
from typing import Any

import typer
from rich.console import Console

from atoll import events
from atoll.clock import monotonic_s, wall_s
from atoll.ids import PeerId
from atoll.sentences import sentence


class Terminal(Console):
    """Falls silent when what it writes to has gone: a window that is closed, a reader that ended.

    A host or a peer goes on then, and must not end in the middle of what it reports.
    """

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        except OSError:
            self.on_broken_pipe()

    def say(self, text: str, *, style: str | None = None, end: str = "\n") -> None:
        """Print a text as it is: it may quote anything, and the terminal breaks its lines."""
        self.print(text, style=style, end=end, markup=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError):  # where it is no file of the system
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())  # for what Python still has to write at its end
            os.close(nowhere)


console = Terminal(highlight=False)
errors = Terminal(stderr=True, highlight=False)
BARS = "▁▂▃▄▅▆▇█"


def write(text: str) -> None:
    """Write a piece of a text at once, as it is.

    Raises:
        typer.Exit: nobody reads it any more.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # the latter on Windows
            raise
        console.on_broken_pipe()
        raise typer.Exit from None


class Lines:
    """Turns events into plain lines; knows the names of peers from what it has seen."""

    def __init__(self) -> None:
        self.names: dict[PeerId, str] = {}
        self._trained_at = 0.0
        self._is_over = False

    def show(self, event: events.Event) -> None:
        """Print the event with its time; in a log file, with its day as well."""
        if line := self.line(event):
            clock = "%H:%M:%S" if console.is_terminal else "%Y-%m-%d %H:%M:%S"
            now = datetime.fromtimestamp(wall_s()).astimezone()
            console.say(f"{now:{clock}}  {line}")

    def line(self, event: events.Event) -> str | None:
        if isinstance(event, events.PeerJoined):
            self.names[event.peer] = event.name
        if isinstance(event, events.Stopped):
            self._is_over = True
        if isinstance(event, events.Training) and not self._is_training_due():
            return None
        return sentence(event, names=self.names)

    def _is_training_due(self) -> bool:
        now = monotonic_s()
        if self._is_over or now - self._trained_at < 5.0:
            return False
        self._trained_at = now
        return True


def progress(what: str, *, of: str) -> Callable[[str, int], None]:
    """Return a callback that shows a counter, `of` such things, while something long goes on."""
    shown_at = monotonic_s()

    def note(doing: str, count: int) -> None:
        nonlocal shown_at
        if monotonic_s() - shown_at > 1.0:
            shown_at = monotonic_s()
            so_far = f", {count} {of} so far" if count else ""
            errors.print(f"{what}: {doing}{so_far}", markup=False)

    return note


def next_steps(commands: Mapping[str, str]) -> None:
    """Print what one may do next: each command, and what it does."""
    width = max(map(len, commands))
    console.print()
    for command, what in commands.items():
        console.say(f"    {command:{width}}    {what}")


def sparkline(values: Sequence[float], *, columns: int) -> str:
    """Return a curve of one character for each value, or for the mean of several neighbours."""
    width = min(columns, len(values))
    borders = [len(values) * column // width for column in range(width + 1)] if width else []
    means = [fmean(values[start:stop]) for start, stop in pairwise(borders)]
    least, most = min(means, default=0.0), max(means, default=0.0)
    steps = [(mean - least) / ((most - least) or 1.0) for mean in means]
    return "".join(BARS[round(step * (len(BARS) - 1))] for step in steps)
