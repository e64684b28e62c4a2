"""HTTP connections that nobody can keep for ever: of the dashboard, and of `atoll serve`."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from atoll import system

MAX_CONNECTIONS = 600
IDLE_S = 20.0  # for a whole request to arrive, or for some of an answer to be taken


class GuardedConnection(H11Protocol):
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


def most_connections() -> int:
    """Return how many connections there may be: a quarter of the files that we may have open.

    The rest is for a host's members, who come by the thousand.
    """
    most_files = system.most_files()
    return MAX_CONNECTIONS if most_files is None else min(MAX_CONNECTIONS, most_files // 4)
