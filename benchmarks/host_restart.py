"""What a host has to bear that is started again: all its members come back.

    benchmarks/host_restart.py 2000 --away-s 20     a line of JSON

The members are `HostLink`s of this one process, over TLS, with the real host in another. Nobody
trains, and no round opens. Times include what this process needs for its ends of connections.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles

from host_load import AT_ONCE, HostProcess, config_of, enrolled_at_last, state_of

from atoll.config import run_digest, template
from atoll.exchange.codec import CODECS
from atoll.exchange.tasks import group
from atoll.ids import INITIAL, PeerId
from atoll.net import wire
from atoll.net.connection import TcpConnection
from atoll.net.identity import Identity, public_key_of
from atoll.net.invite import Invite
from atoll.net.transport import TcpTransport
from atoll.peer.hosts import Hosts
from atoll.peer.link import HostLink, Manners
from atoll.system import allow_many_files

HEARTBEAT_S = 5.0


class Counting(TcpTransport):
    """Notes when it dials."""

    def __init__(self, identity: Identity, dialled_at: list[float]) -> None:
        super().__init__(identity)
        self._dialled_at = dialled_at

    async def dial(
        self, host: str, port: int, *, expect: PeerId | None, timeout_s: float
    ) -> TcpConnection:
        self._dialled_at.append(time.monotonic())
        return await super().dial(host, port, expect=expect, timeout_s=timeout_s)


class Crowd:
    """The members, and when each was welcomed last."""

    def __init__(self, num_members: int) -> None:
        self.config = config_of(num_members + 1, heartbeat_s=HEARTBEAT_S)
        self.num_members = num_members
        self.dialled_at: list[float] = []
        self.welcomed_at: dict[PeerId, float] = {}
        self._changed = asyncio.Event()

    async def live(self, number: int, invite: Invite, turn: asyncio.Semaphore) -> None:
        """Become a member, and keep the connection to the host for ever."""
        identity, name = Identity.create(), f"member-{number}"
        async with turn:
            enrolled = await enrolled_at_last(invite, identity, name)
        link = HostLink(
            peer=identity.peer_id,
            transport=Counting(identity, self.dialled_at),
            hosts=Hosts(
                peer=enrolled.host,
                public_key=public_key_of(identity.authority),
                first=invite.places[0],
            ),
            emit=lambda _: None,
        )

        def hear(message: wire.Message) -> None:
            if isinstance(message, wire.Welcome):
                self.welcomed_at[identity.peer_id] = time.monotonic()
                self._changed.set()
                link.send(wire.AtState(round=INITIAL, state=state_of(INITIAL), device="none"))

        hello = wire.Hello(
            protocol=wire.PROTOCOL,
            run=run_digest(self.config),
            name=name,
            trains=True,
            listen_host="",
            listen_port=0,
            codecs=tuple(CODECS),
            round=INITIAL,
            state=state_of(INITIAL),
        )
        await link.run(
            Manners(
                hello=lambda: hello,
                heartbeat=wire.Heartbeat,
                goodbye=lambda: wire.Leaving(reason="it is over"),
                every_s=HEARTBEAT_S,
                silent_s=self.config.sync.silent_s,
                hear=hear,
            )
        )

    async def all_welcomed(self) -> None:
        while len(self.welcomed_at) < self.num_members:
            self._changed.clear()
            await self._changed.wait()


async def measured(directory: Path, *, num_members: int, away_s: float) -> dict[str, object]:
    crowd = Crowd(num_members)
    (directory / "run.toml").write_text(template(crowd.config))
    host, turn = HostProcess(directory, num_members), asyncio.Semaphore(AT_ONCE)
    try:
        async with group() as start:
            members = [start(crowd.live(k, host.invite, turn)) for k in range(num_members)]
            await crowd.all_welcomed()
            host.end()
            crowd.welcomed_at.clear()
            await asyncio.sleep(away_s)
            port = host.invite.port
            host = await asyncio.to_thread(HostProcess, directory, num_members, port=port)
            began_at, cpu_s = time.monotonic(), host.cpu_s
            await crowd.all_welcomed()
            cpu_s = host.cpu_s - cpu_s
            for member in members:
                member.cancel()
    finally:
        host.end()
    waits_s = sorted(at - began_at for at in crowd.welcomed_at.values())
    dials = [at for at in crowd.dialled_at if at >= began_at]
    percentiles = quantiles(waits_s, n=100)
    return {
        "members": num_members,
        "away_s": away_s,
        "back_p50_s": round(percentiles[49], 2),
        "back_p99_s": round(percentiles[98], 2),
        "back_all_s": round(waits_s[-1], 2),
        "host_cpu_s": round(cpu_s, 2),
        "dials": len(dials),
        "most_dials_in_100_ms": max(Counter(int(10 * at) for at in dials).values()),
        "most_dials_before_in_100_ms": max(
            Counter(int(10 * at) for at in crowd.dialled_at if at < began_at).values()
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("members", type=int)
    parser.add_argument("--away-s", type=float, default=20.0, help="from its death to its start")
    given = parser.parse_args()
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="atoll-host-restart-") as directory:
        result = asyncio.run(
            measured(Path(directory), num_members=given.members, away_s=given.away_s)
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
