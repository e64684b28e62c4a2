"""The control connection of one member, and what it is told: in order, and never waited for."""

import asyncio

from atoll.net import wire
from atoll.net.transport import Connection

MAX_QUEUED = 20_000  # messages to one member; it does not read, so it goes


class Session:
    def __init__(self, connection: Connection) -> None:
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
