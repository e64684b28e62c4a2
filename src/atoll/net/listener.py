"""The side that is dialled: one task per connection, all owned by the listener.

    accept --> handshake (a few hundred at a time, with a deadline) --> serve --> close

A stranger may be anybody on the internet: few of them at a time, and not for long. A member is
served as long as `serve` likes.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from atoll.errors import PeerError
from atoll.net.connection import TcpConnection

_HANDSHAKES = 256  # at a time; further ones wait in the backlog of the system
_RETRY_S = 0.1  # after the system refused a connection: too many open files


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one transport may use, over all its connections."""

    upload_bytes_per_s: int = 0  # 0: no limit
    download_bytes_per_s: int = 0
    handshake_s: float = 10.0
    strangers: int = 64  # at a time
    stranger_s: float = 30.0  # for all that a stranger has to say


class TcpListener:
    """Answers whoever dials `port`, until it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        *,
        answer: Callable[[socket.socket], Awaitable[TcpConnection]],
        serve: Callable[[TcpConnection], Awaitable[None]],
        limits: Limits,
    ) -> None:
        listening.settimeout(0)
        self.port: int = listening.getsockname()[1]
        self._listening = listening
        self._answer = answer
        self._serve = serve
        self._limits = limits
        self._num_strangers = 0
        self._handshakes = asyncio.Semaphore(_HANDSHAKES)
        self._conversations: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Stop listening, and end the connections that came from it."""
        self._accepting.cancel()
        # One turn for the conversations: cancelled before its first step, one leaks its socket.
        await asyncio.sleep(0)
        self._listening.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(self._accepting, *self._conversations, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._handshakes.acquire()
            try:
                accepted, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                self._handshakes.release()
                _report("a connection could not be accepted", error)
                await asyncio.sleep(_RETRY_S)
                continue
            conversation = asyncio.create_task(self._converse(accepted))
            self._conversations.add(conversation)
            conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, accepted: socket.socket) -> None:
        try:
            connection = await self._answer(accepted)
        except (OSError, PeerError):
            return  # another run's certificate, no TLS 1.3, too slow, gone: nobody to talk to
        finally:
            self._handshakes.release()
        try:
            if connection.peer is None:
                await self._serve_stranger(connection)
            else:
                await self._serve(connection)
        except Exception as error:  # noqa: BLE001 - one connection must not end the others
            if bug := _bug_in(error):
                _report("serving a connection failed", bug)
        finally:
            await connection.close()

    async def _serve_stranger(self, connection: TcpConnection) -> None:
        if self._num_strangers >= self._limits.strangers:
            return
        self._num_strangers += 1
        patience = asyncio.timeout(self._limits.stranger_s)
        try:
            async with patience:
                await self._serve(connection)
        except TimeoutError:
            if not patience.expired():
                raise
        finally:
            self._num_strangers -= 1


def _bug_in(error: Exception) -> Exception | None:
    """Return what of the error, or of the group of errors, is no peer's fault."""
    if isinstance(error, ExceptionGroup):
        return error.split(PeerError)[1]
    return None if isinstance(error, PeerError) else error


def _report(message: str, error: Exception) -> None:
    """Tell whoever handles the bugs of this event loop (by default, the log)."""
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
