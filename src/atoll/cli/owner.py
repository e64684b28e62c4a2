"""What the owner of this machine wants of its peer: by Ctrl-C, by `atoll pause`, by its hours.

A file `paused` in the peer's directory is all there is to a pause: who may write there, may pause
it, and it lasts over a restart. The peer looks for it once a second.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from atoll.cli.part import Part
from atoll.cli.places import peer_directories
from atoll.clock import wall_s
from atoll.errors import ConfigError
from atoll.peer.agent import Agent
from atoll.peer.hours import Hours
from atoll.train.machines import Machines

PAUSE_FILE: Final = "paused"
LOOK_S: Final = 1.0  # between two looks at the file, and at the clock, which may be set


def local_now() -> datetime:
    return datetime.fromtimestamp(wall_s()).astimezone()


class Owner:
    """`give_up` ends the peer at once. `now` is local time."""

    def __init__(
        self,
        part: Part,
        directory: Path,
        hours: Hours | None,
        *,
        give_up: Callable[[], object],
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self.is_gone = False  # its owner wants it to end
        self._part = part
        self._pause_file = directory / PAUSE_FILE
        self._hours = hours
        self._give_up: Callable[[], object] | None = give_up
        self._now = now
        self._agent: Agent | None = None
        self._machines: Machines | None = None

    def interrupt(self) -> None:
        """Do what Ctrl-C asks for: leave once the work is in; the second time, at once."""
        if self.is_gone or self._agent is None or not self._agent.leave():
            self.end()
        else:
            self.is_gone = True
            self._part.leave(at=wall_s())

    def end(self) -> None:
        """Leave at once. To say it again changes nothing: it would cut short what is tidied up."""
        self.is_gone = True
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    async def until_open(self) -> None:
        """Return when the hours in which it trains have begun, as far as there are any."""
        if self._hours is None or self._hours.is_open(self._now()):
            return
        begins = self._hours.next_change(self._now())
        self._part.rest_until(f"{begins:%H:%M}", at=wall_s())
        while not self._hours.is_open(self._now()):  # noqa: ASYNC110 - a clock may be set
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Let the agent rest if its owner wants it to, or if a machine of the peer is missing."""
        if self._agent is not None:
            why = ""
            if self._machines is not None and self._machines.num_missing:
                why = f"machines of this peer that are missing: {self._machines.num_missing}"
            self._agent.pause(rests=bool(why) or self._pause_file.exists(), why=why)

    async def watch(self, agent: Agent, machines: Machines | None = None) -> None:
        """Let the agent do what its owner wants, for as long as it lives."""
        self._agent, self._machines = agent, machines
        if machines is not None:
            machines.on_change = self.look
        is_closing = False
        try:
            while True:
                self.look()
                if self._hours is not None and not self._hours.is_open(self._now()):
                    agent.leave()
                    if not is_closing:
                        text = f"it is {self._now():%H:%M}: leaving after this round, as you wanted"
                        self._part.say(text, at=wall_s())
                    is_closing = True
                await asyncio.sleep(LOOK_S)
        finally:
            self._agent = self._machines = None


# --- for the other commands of this machine ------------------------------------------------------


def set_paused(directory: Path, *, rests: bool) -> None:
    """Pause the peer of this directory, or let it go on.

    Raises:
        ConfigError: we may not write there.
    """
    path = directory / PAUSE_FILE
    try:
        path.touch() if rests else path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", hint="it is for the user who started the peer"
        ) from error


def peers_here(directory: Path | None) -> list[Path]:
    """Return the directories of the peers that run on this machine; or this one.

    Raises:
        ConfigError: there is none.
    """
    if directory is not None:
        if not (directory / "run.json").is_file():
            raise ConfigError(f"no peer lives in {directory}", hint="name the --dir that it has")
        return [directory]
    here = [path for path in peer_directories() if is_running(path)]
    if not here:
        raise ConfigError(
            "no peer runs here, unless in a directory of its own",
            hint="one that was started with --dir DIR is named by it here, too: --dir DIR",
        )
    return here


def is_running(directory: Path) -> bool:
    """Return whether a process lives in this directory."""
    lock = FileLock(directory / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
