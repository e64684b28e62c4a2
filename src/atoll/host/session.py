"""The control connection of one member, and what it is told: in order, and never waited for."""

import asyncio
from collections.abc import Mapping

from atoll.config import SyncConfig
from atoll.events import Emit, Warned
from atoll.ids import PeerId
from atoll.net import wire
from atoll.net.transport import Connection
from atoll.sentences import one_line
from atoll.units import format_seconds

MAX_QUEUED = 20_000  # messages to one member; it does not read, so it goes


class Session:
    """`instance` is the member's process, by the name that it gave itself."""

    def __init__(self, connection: Connection, *, instance: str) -> None:
        self.instance = instance
        self.began_at = asyncio.get_running_loop().time()
        self.heard = asyncio.Event()  # set with each message of the member
        self.connection = connection
        self.outbox: asyncio.Queue[wire.Message] = asyncio.Queue(MAX_QUEUED)
        self.ended = asyncio.Event()
        self.reason = "its connection ended"

    def put(self, message: wire.Message) -> None:
        """Send the message after those before it."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.drop("it does not read what we send")

    def drop(self, reason: str) -> None:
        self.reason = reason
        self.ended.set()

    def end(self) -> None:
        """Note that the connection is over."""
        self.ended.set()
        self.heard.set()  # whoever waits for a sign of life need not

    async def is_alive(self, heartbeat_s: float) -> bool:
        """Return whether its process says something, but for what may be on its way already."""
        await asyncio.sleep(heartbeat_s)
        self.heard.clear()
        try:
            async with asyncio.timeout(0 if self.ended.is_set() else 2 * heartbeat_s):
                await self.heard.wait()
        except TimeoutError:
            return False
        return not self.ended.is_set()


async def judge_instance(
    peer: PeerId,
    hello: wire.Hello,
    sessions: Mapping[PeerId, Session],
    sync: SyncConfig,
    *,
    emit: Emit,
) -> wire.Refused | None:
    """Return why this process cannot take part: another one with the same key does; None: it can.

    A process that was killed, or lost its machine, ends its session, or says nothing any more: the
    one that comes after it takes its place.
    """
    while (other := sessions.get(peer)) is not None and other.instance != hello.instance:
        if await other.is_alive(sync.heartbeat_s):
            refused = _in_use(other, silent_s=sync.silent_s)
            emit(Warned(text=f"a second {one_line(hello.name)} was turned away: {refused.reason}"))
            return refused
        if sessions.get(peer) is other:
            return None
    return None


def _in_use(other: Session, *, silent_s: float) -> wire.Refused:
    seconds = asyncio.get_running_loop().time() - other.began_at
    return wire.Refused(
        reason=f"this key is in use already, by a peer at {other.connection.remote_host} that came "
        f"{format_seconds(seconds)} ago",
        hint=f"for a second peer, join with an invite in a directory of its own. If that other one "
        f"is to end, end it: {format_seconds(silent_s)} later this one is let in",
    )
