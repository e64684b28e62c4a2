"""The side that is dialled: one task per connection, all owned by the listener.

    accept --> handshake (so many at a time, with a deadline) --> serve --> close

A stranger may be anybody on the internet: few of them at a time, and not for long. A member is
served as long as `serve` likes, on so many connections and no more.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from atoll import system
from atoll.errors import PeerError
from atoll.ids import PeerId
from atoll.net import wire
from atoll.net.connection import TcpConnection

_RETRY_S = 0.1  # after the system refused a connection: too many open files


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one transport may use, over all its connections."""

    upload_bytes_per_s: int = 0  # 0: no limit
    download_bytes_per_s: int = 0
    congestion: str = ""  # control of it, "bbr" or "cubic"; the system's own where it has no such
    handshake_s: float = 10.0
    handshakes: int = 256  # at a time; further ones wait in the backlog of the system
    strangers: int = 64  # at a time
    stranger_s: float = 30.0  # for all that a stranger has to say
    per_member: int = 64  # connections of one member at a time: a few for each open round


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
        self._is_refused = False  # by the system: it lets us accept nothing, as it last said
        self._num_handshakes = 0
        self._num_strangers = 0
        self._num_of_members: Counter[PeerId] = Counter()
        self._conversations: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._stop_accepting = system.when_dialled(self._loop, listening, self._accept)

    async def close(self) -> None:
        """Stop listening, and end the connections that came from it."""
        self._stop_accepting()
        self._listening.close()
        # One turn for the conversations: cancelled before its first step, one leaks its socket.
        await asyncio.sleep(0)
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    def _accept(self) -> None:
        """Take one connection; the event loop calls this when there is one."""
        try:
            accepted, _ = self._listening.accept()
        except BlockingIOError:
            return  # it has gone again
        except OSError as error:  # too many open files, most likely: wait until some are closed
            if not self._is_refused:  # once, not ten times a second
                text = f"no connection can be accepted for now: {error.strerror}"
                self._loop.call_exception_handler({"message": f"{text} (see ulimit -n)"})
            self._is_refused = True
            self._stop_accepting()
            self._loop.call_later(_RETRY_S, self._accept_again)
            return
        self._is_refused = False
        self._num_handshakes += 1
        if self._num_handshakes == self._limits.handshakes:
            self._stop_accepting()
        accepted.settimeout(0)
        conversation = self._loop.create_task(self._converse(accepted))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    def _accept_again(self) -> None:
        is_open = self._listening.fileno() >= 0
        if is_open and self._num_handshakes < self._limits.handshakes:
            self._stop_accepting()
            self._stop_accepting = system.when_dialled(self._loop, self._listening, self._accept)

    async def _converse(self, accepted: socket.socket) -> None:
        try:
            connection = await self._answer(accepted)
        except (OSError, PeerError):
            return  # another run's certificate, no TLS 1.3, too slow, gone: nobody to talk to
        finally:
            self._num_handshakes -= 1
            self._accept_again()
        try:
            if connection.peer is None:
                await self._serve_stranger(connection)
            else:
                await self._serve_member(connection, connection.peer)
        except Exception as error:  # noqa: BLE001 - one connection must not end the others
            if bug := bug_in(error):
                _report("serving a connection failed", bug)
        finally:
            await connection.close()

    async def _serve_member(self, connection: TcpConnection, peer: PeerId) -> None:
        if self._num_of_members[peer] >= self._limits.per_member:
            reason = f"{self._limits.per_member} connections of yours are open here already"
            hint = "close some; a run that needs more has a bug, or two processes with one key"
            await connection.send(wire.Refused(reason=reason, hint=hint, final=False))
            return
        self._num_of_members[peer] += 1
        try:
            await self._serve(connection)
        finally:
            self._num_of_members[peer] -= 1
            self._num_of_members += Counter()  # forgets who has none

    async def _serve_stranger(self, connection: TcpConnection) -> None:
        if self._num_strangers >= self._limits.strangers:
            reason = f"{self._limits.strangers} newcomers are coming in at this moment"
            hint = "try again in a minute"
            await connection.send(wire.Refused(reason=reason, hint=hint, final=False))
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


def bug_in(error: Exception) -> Exception | None:
    """Return what of the error, or of the group of errors, is no peer's fault."""
    if isinstance(error, ExceptionGroup):
        return error.split(PeerError)[1]
    return None if isinstance(error, PeerError) else error


def _report(message: str, error: Exception) -> None:
    """Tell whoever handles the bugs of this event loop (by default, the log)."""
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
