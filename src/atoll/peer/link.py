"""The control connection to the host: kept for as long as the agent lives, dialled anew when lost.

    dial -> Hello -> Welcome -> (heartbeats, messages both ways) -> lost -> dial ...

What the host says goes to the board. What we say while it is away is dropped: after the next Hello
both sides tell each other all that still matters.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from atoll.errors import ConfigError, ConnectionLost, PeerError, ProtocolError
from atoll.events import Connected, Disconnected, Emit
from atoll.ids import PeerId, digest_of
from atoll.net import wire
from atoll.net.records import committed
from atoll.net.transport import Connection, Transport
from atoll.peer.board import Board
from atoll.peer.hosts import Hosts

DIAL_S = 10.0
GOODBYE_S = 2.0
SHORTEST_S = 0.1  # between two attempts
FIRST_S = 1.0  # the longest before the second attempt; twice as long each time
LONGEST_S = 8.0  # a restarted host has its peers back soon


def retry_s(peer: PeerId, failures: int) -> float:
    """Return how long to wait after so many attempts in a row that failed.

    Peers that have lost their host in one moment come back spread over all the time between the
    shortest wait and the longest: what chance that takes is in their ids, which are digests.
    """
    chance = int(digest_of(f"{peer} {failures}".encode())[:12], 16) / 16**12
    longest_s = min(LONGEST_S, FIRST_S * 2.0 ** min(failures, 10))
    return SHORTEST_S + chance * (longest_s - SHORTEST_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """What we say to the host, and when; `hear` gets what it says that is not for the board."""

    hello: Callable[[], wire.Hello]
    heartbeat: Callable[[], wire.Heartbeat]
    goodbye: Callable[[], wire.Leaving]
    hear: Callable[[wire.Message], None]
    every_s: float  # between two heartbeats
    silent_s: float  # a host that says nothing for so long is lost


class HostLink:
    def __init__(self, *, peer: PeerId, transport: Transport, hosts: Hosts, emit: Emit) -> None:
        self._peer = peer
        self._transport = transport
        self._hosts = hosts
        self.board = Board()
        self._emit = emit
        self._outbox: asyncio.Queue[wire.Message] | None = None
        self._connection: Connection | None = None
        self._follows = False  # the host that it is connected to

    def send(self, message: wire.Message) -> bool:
        """Tell the host, if it is there now; return whether it is."""
        if self._outbox is None:
            return False
        self._outbox.put_nowait(message)
        return True

    async def run(self, manners: Manners) -> None:
        """Keep the connection, also once the run is complete: we may still lack the end of it.

        Raises:
            ConfigError: the host turned us away for good.
        """
        failures = 0
        while True:
            session = self.board.session
            try:
                async with asyncio.timeout(DIAL_S):
                    host, port = self._hosts.place
                    self._connection = await self._transport.dial(
                        host, port, expect=self._hosts.peer, timeout_s=DIAL_S
                    )
                    await self._connection.send(manners.hello())
                await self._converse(self._connection, manners)
            except* (PeerError, TimeoutError) as errors:
                if failures == 0 or self.board.session != session:
                    reasons = [str(e) or "it does not answer" for e in errors.exceptions]
                    reason = "; ".join(dict.fromkeys(reasons))
                    self._emit(Disconnected(reason=reason))
            finally:
                self._outbox = None
                if self._connection is not None:
                    await self._connection.close()
                    self._connection = None
            # A task group that fails just when it is cancelled keeps only the failure.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError
            if self.board.session != session:  # the host had welcomed us
                failures = 0
            else:
                self._hosts.look_elsewhere()
            await asyncio.sleep(retry_s(self._peer, failures))
            failures += self._hosts.is_tried

    async def reconnect(self) -> None:
        """Return once the host has answered a new Hello, or the run is complete."""
        board, session = self.board, self.board.session
        if self._connection is not None:
            await self._connection.close()
        await board.wait_for(
            lambda: board.session != session or (board.stop and board.stop.complete) or None
        )

    async def _converse(self, connection: Connection, manners: Manners) -> None:
        outbox = self._outbox = asyncio.Queue()
        self._follows = False

        async def write() -> None:
            while True:
                await connection.send(await outbox.get())

        async def beat() -> None:
            while True:
                await asyncio.sleep(manners.every_s)
                outbox.put_nowait(manners.heartbeat())

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(write())
                group.create_task(beat())
                while True:
                    async with asyncio.timeout(manners.silent_s):
                        message = await connection.receive()
                    self._take(message)
                    manners.hear(message)
                    if not isinstance(message, wire.Heartbeat):
                        self.board.notify()
        except asyncio.CancelledError:  # whatever ends us: the host need not wait for our return
            with suppress(PeerError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await connection.send(manners.goodbye())
            raise

    def _take(self, message: wire.Message) -> None:
        """Find out whether we follow this host; what it then says goes to the board."""
        match message:
            case wire.Refused(reason=reason, hint=hint, final=final, hosts=hosts):
                if final:
                    raise ConfigError(f"the host turned us away: {reason}", hint=hint)
                self._hosts.hear_of(hosts)
                raise ConnectionLost(reason, hint=hint)
            case wire.Leader():
                self._hosts.follow(message)
                self._follows = True
            case _ if not self._follows:
                raise ProtocolError("the host does not say in which epoch it leads")
            case _:
                self._note(message)

    def _note(self, message: wire.Message) -> None:
        board = self.board
        match message:
            case wire.Welcome():
                board.session += 1
                board.plans.clear()
                board.closed.clear()
                board.sources = message.sources
                board.dataset = message.dataset
                board.base = (message.base_round, message.base_state)
                board.reset = board.reset or message.reset
                self._emit(Connected(host=self._hosts.place[0], committed=message.committed))
            case wire.Plan():
                board.plans[message.round] = message
                board.sources = message.sources
            case wire.Closed():
                board.closed[message.round] = message
            case wire.Commit():
                record = committed(message, public_key=self._hosts.public_key)
                board.commits[record.round] = record
            case wire.Resync():
                board.base = (message.round, message.state)
            case wire.Stop():
                board.stop = message
            case wire.Heartbeat() | wire.Reduce() | wire.Evaluate():
                pass
            case _:
                raise ProtocolError(f"{type(message).__name__} is not for a peer")
