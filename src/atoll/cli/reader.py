"""A member that only reads along: its directory has the newest committed model.

An agent without a trainer, and without a port, in a thread beside the command that wants the model.
"""

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.cli.enrolment import become_member
from atoll.config import PeerConfig
from atoll.errors import AtollError
from atoll.events import Event, EventLog, Warned
from atoll.net.invite import Invite
from atoll.net.transport import TcpTransport
from atoll.peer.agent import Agent
from atoll.peer.home import Home, read_run_file
from atoll.sentences import plain

MAX_NEWS = 100  # warnings that nobody has asked for yet


class Reader:
    """Follows a run from the directory of a member."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_name = read_run_file(directory).config.name
        self._news: deque[str] = deque(maxlen=MAX_NEWS)
        self._failure: AtollError | None = None
        self._stop = threading.Event()

    def check(self) -> list[str]:
        """Return what went wrong meanwhile, and could be dealt with.

        Raises:
            AtollError: it cannot follow the run any more.
        """
        if self._failure is not None:
            raise self._failure
        news = []
        with suppress(IndexError):
            while True:
                news.append(self._news.popleft())
        return news

    def run(self) -> None:
        """Follow the run until `stop` is called, or the run is complete."""
        try:
            asyncio.run(self._follow())
        except AtollError as error:
            self._failure = error

    def stop(self) -> None:
        self._stop.set()

    async def _follow(self) -> None:
        home = Home(self.directory, keep_states=2)
        log = EventLog(self.directory / "events.jsonl", show=self._note)
        peer = PeerConfig(directory=str(self.directory), name=_name())
        transport = TcpTransport(home.identity)
        agent = Agent(home, peer, transport=transport, start_trainer=None, emit=log.emit)
        agent.read_along()
        following = asyncio.create_task(agent.run())
        stopping = asyncio.create_task(asyncio.to_thread(self._stop.wait))
        try:
            await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            self._stop.set()
            following.cancel()
            await asyncio.gather(following, stopping, return_exceptions=True)
            log.close()

    def _note(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._news.append(plain(event.text))


@contextmanager
def reading(invite: str, directory: Path) -> Iterator[Reader]:
    """Yield what follows the run of the invite, while the block runs.

    Raises:
        AtollError: the host turned us away, or cannot be reached.
    """
    parsed = Invite.parse(invite)
    asyncio.run(become_member(parsed, directory, name=_name()))
    reader = Reader(directory)
    thread = threading.Thread(target=reader.run, name="reader")
    thread.start()
    try:
        yield reader
    finally:
        reader.stop()
        thread.join()


def _name() -> str:
    return f"{socket.gethostname()} (reads)"
