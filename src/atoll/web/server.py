"""The dashboard on a port of its own, in the event loop of the host, which it must not hold up.

So connections are few (the host needs its file descriptors for members), those that ask for nothing
end, and whatever goes wrong in here ends a request, never the host.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from atoll.net.http import listening_at
from atoll.net.http_connection import GuardedConnection
from atoll.web.admin import Admin
from atoll.web.app import application
from atoll.web.board import Board
from atoll.web.stream import Stream

LAST_WORDS_S = 1  # for answers under way, when the host ends


class _Server(uvicorn.Server):
    """A server that leaves the signals to the host."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
            http=GuardedConnection,
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
