"""One that joins: it fetches chunks of a state from all peers, over and over, when told to.

go      begin to fetch
stop    end it; the reply says how many bytes came, and in how many seconds
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from systems.atoll_peer import CHUNK
from systems.peer import Setup

from atoll.exchange.links import Links, fetch
from atoll.exchange.statesync import PER_SOURCE
from atoll.exchange.tasks import together
from atoll.ids import digest_of
from atoll.net import wire
from atoll.net.identity import Identity
from atoll.net.listener import Limits
from atoll.net.transport import TcpTransport
from atoll.outer.manifest import CHUNK_BYTES


class Joiner:
    def __init__(self, setup: Setup) -> None:
        hub = json.loads(setup.hub)
        folder = Path(hub["folder"])
        identity = Identity.load(folder / f"joiner{setup.rank}")
        transport = TcpTransport(identity, Limits(congestion=setup.congestion))
        self.links = Links(transport)
        self.sources = [
            wire.Address(
                peer=Identity.load(folder / str(rank)).peer_id, host=host, port=hub["ports"][rank]
            )
            for rank, host in enumerate(setup.addresses)
        ]

    async def fetch_on(self, source: wire.Address) -> None:
        async with self.links.to(source) as connection:
            while True:
                await fetch(connection, digest_of(CHUNK), at_most=CHUNK_BYTES)

    async def fetch_from_all(self) -> None:
        await together(*(self.fetch_on(source) for source in self.sources * PER_SOURCE))


async def main() -> None:
    joiner = Joiner(Setup(**json.loads(sys.stdin.readline())))
    loop = asyncio.get_running_loop()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    fetching: asyncio.Task[None] | None = None
    began_at, before = loop.time(), 0
    while command := await asyncio.to_thread(sys.stdin.readline):
        reply: dict[str, float] = {}
        if command.strip() == "go":
            began_at, before = loop.time(), joiner.links.transport.num_received
            fetching = asyncio.create_task(joiner.fetch_from_all())
        elif fetching is not None:
            reply = {
                "num_bytes": joiner.links.transport.num_received - before,
                "seconds": loop.time() - began_at,
            }
            fetching.cancel()
            with suppress(asyncio.CancelledError):
                await fetching
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
