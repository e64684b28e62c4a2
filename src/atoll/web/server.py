"""The dashboard on a port of its own, in the event loop of the host, which it must not hold up.

So connections are few (the host needs its file descriptors for members), those that ask for nothing
end, and whatever goes wrong in here ends a request, never the host.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from atoll import system
from atoll.net.http import listening_at
from atoll.web.admin import Admin
from atoll.web.app import application
from atoll.web.board import Board
from atoll.web.stream import Stream

MAX_CONNECTIONS = 600
IDLE_S = 20.0  # for a whole request to arrive, or for some of an answer to be taken
LAST_WORDS_S = 1  # for answers under way, when the host ends


class _Connection(H11Protocol):
    """A connection that ends if it is one too many, or if it waits for the other side too long.

    Looked at every `IDLE_S`: what waited for the same thing all the time since the last look ends.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.close()
        self._waited = self._waits()
        self._looking = self.loop.call_later(IDLE_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._waited = ()
        super().resume_writing()

    def _look(self) -> None:
        waits = self._waits()
        if waits and waits == self._waited:
            self.transport.abort()  # `close` would wait until all is taken
            return
        self._waited = waits
        self._looking = self.loop.call_later(IDLE_S, self._look)

    def _waits(self) -> tuple[object, ...]:
        """Return what the other side is waited for; empty: for nothing."""
        if self.flow.write_paused or self.transport.is_closing():
            return ("to take what it was sent",)
        request: RequestResponseCycle | None = self.cycle  # whatever its type says
        if request is None or request.response_complete:
            return ("for a request after", request)
        return ()


class _Server(uvicorn.Server):
    """A server that leaves the signals to the host."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def most_connections() -> int:
    """Return how many connections there may be: a quarter of the files that we may have open.

    The rest is for members, who come by the thousand.
    """
    most_files = system.most_files()
    return MAX_CONNECTIONS if most_files is None else min(MAX_CONNECTIONS, most_files // 4)


@contextlib.asynccontextmanager
async def serving(
    board: Board,
    *,
    host: str,
    port: int,
    on_failure: Callable[[str], None],
    admin: Admin | None = None,
) -> AsyncIterator[int]:
    """Serve the board while the block runs; yield the port.

    If the dashboard fails, `on_failure` hears why, and the block goes on without it.

    Raises:
        RunError: the port is taken.
    """
    hint = "choose another port with --web PORT (0: any free one), or --no-web"
    listening = listening_at(host, port, purpose="serve the dashboard", hint=hint)
    stream = Stream(board)
    server = _server(application(board, stream, admin))
    tasks = [
        asyncio.create_task(stream.run()),
        asyncio.create_task(server.serve(sockets=[listening])),
    ]

    def note_end(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            on_failure(f"the dashboard has ended: {error!r}")

    for task in tasks:
        task.add_done_callback(note_end)
    try:
        yield listening.getsockname()[1]
    finally:
        tasks[0].cancel()  # which says good-bye to the viewers
        server.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)
        listening.close()


def _server(app: ASGIApp) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what strangers do wrong is no news
            access_log=False,
            server_header=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )
    )
