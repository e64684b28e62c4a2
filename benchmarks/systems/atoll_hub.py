"""The host's part in an exchange of atoll: who reduces what, when it closes, what the inputs are.

Prints where it listens and where the peers find their keys; serves until stdin closes. It is no
host: it trusts its peers, and a round is closed when all have delivered all.
"""

import asyncio
import json
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from atoll.exchange.plan import assign, runs
from atoll.ids import Digest, PeerId, RoundId, digest_of
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.net.transport import Connection, TcpTransport
from atoll.outer.layout import slice_bounds

HUB = "hub"
CLOSED = wire.Stop(
    reason="all have delivered all", complete=False
)  # no slice can be missing any more


class Hub:
    def __init__(self, peers: dict[PeerId, wire.Address], *, num_slices: int, codec: str) -> None:
        self.peers = peers
        self.assignment = assign(num_slices, sorted(peers))
        self.codec = codec
        self.connections: dict[PeerId, Connection] = {}
        self.round = RoundId(0)
        self.ready: set[PeerId] = set()
        self.contributions: dict[PeerId, tuple[Digest, ...]] = {}
        self.delivered: dict[PeerId, set[int]] = defaultdict(set)

    async def serve(self, connection: Connection) -> None:
        assert connection.peer is not None
        self.connections[connection.peer] = connection
        while True:
            match await connection.receive():
                case wire.Heartbeat():
                    self.ready.add(connection.peer)
                    if len(self.ready) == len(self.peers):
                        await self.plan()
                case wire.Contribution(digests=digests):
                    self.contributions[connection.peer] = digests
                    if len(self.contributions) == len(self.peers):
                        await self.announce_roster()
                case wire.Delivered(contributor=contributor, slice=index):
                    self.delivered[contributor].add(index)  # it may be said again
                    await self.close_if_all_is_there()
                case _:
                    pass

    async def plan(self) -> None:
        self.round = RoundId(self.round + 1)
        self.ready.clear()
        self.contributions.clear()
        self.delivered.clear()
        plan = wire.Plan(
            round=self.round,
            version=1,
            fragment=0,
            first_step=0,
            codec=self.codec,
            update_codec=self.codec,
            reductions=tuple(
                wire.Reduction(reducer=self.peers[peer], start=start, stop=stop)
                for peer, start, stop in runs(self.assignment)
            ),
            leases=(),
            sources=(),
        )
        for connection in self.connections.values():
            await connection.send(plan)

    async def close_if_all_is_there(self) -> None:
        num_slices = len(self.assignment)
        whole = [peer for peer, slices in self.delivered.items() if len(slices) == num_slices]
        if len(whole) == len(self.peers):
            for connection in self.connections.values():
                await connection.send(CLOSED)

    async def announce_roster(self) -> None:
        share = 1 / len(self.peers)
        for connection in self.connections.values():
            await connection.send(wire.Closed(round=self.round, roster_version=1))
        for index, reducer in enumerate(self.assignment):
            inputs = tuple(
                wire.ReduceInput(peer=peer, share=share, digest=self.contributions[peer][index])
                for peer in sorted(self.peers)
            )
            await self.connections[reducer].send(
                wire.Reduce(round=self.round, roster_version=1, slice=index, inputs=inputs)
            )


def make_members(
    folder: Path, addresses: list[str], ports: list[int], *, num_joiners: int
) -> dict[PeerId, wire.Address]:
    """Write a key for the hub, each peer and joiner, and return where the peers will listen."""
    authority = Authority.create(run=digest_of(b"benchmark"))
    peers: dict[PeerId, wire.Address] = {}
    others = [HUB, *(f"joiner{number}" for number in range(num_joiners))]
    for rank, name in enumerate([*map(str, range(len(addresses))), *others]):
        (folder / name).mkdir()
        identity = Identity.create()
        identity.certify(authority.sign_member(identity.public_key, name), authority.certificate)
        identity.save(folder / name)
        if name not in others:
            peer = identity.peer_id
            peers[peer] = wire.Address(peer=peer, host=addresses[rank], port=ports[rank])
    return peers


async def main() -> None:
    task = json.loads(sys.stdin.readline())
    with TemporaryDirectory(prefix="atoll-exchange-") as name:
        folder = Path(name)
        num_peers = task["num_peers"]
        addresses = task["addresses"]
        # On a loopback all have one address.
        ports = [30000 + rank for rank in range(num_peers)]
        peers = make_members(folder, addresses, ports, num_joiners=task["num_joiners"])
        hub = Hub(peers, num_slices=len(slice_bounds(task["num_values"])), codec=task["codec"])
        transport = TcpTransport(Identity.load(folder / HUB))
        listener = await transport.listen(hub.serve, host=task["address"], port=0)
        where = {"host": task["address"], "port": listener.port, "folder": name, "ports": ports}
        print(json.dumps(where), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await listener.close()


if __name__ == "__main__":
    asyncio.run(main())
