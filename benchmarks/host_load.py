"""How many members one host can bear: real connections over TLS, from a process that plays them.

    benchmarks/host_load.py 100 500 2000     a line of JSON for each number of members

    this process: N members, each with its key, certificate and connection  --TLS-->  a host process

The host, its journal and the transport are the real code. The members say all that agents say to a
host in a round, and two of them answer as reducers do; they train for a random time and exchange no
blobs, since none of these passes through the host. Seconds of processors are those of the host's
process, and its memory is what it has at the end. An announcement takes from the moment at which
the second member said that the updates are on its disk until a member has the commit.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from statistics import quantiles

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    load_run_config,
    run_digest,
    template,
)
from atoll.errors import ConnectionLost
from atoll.events import EventLog, RoundCommitted
from atoll.exchange.codec import CODECS
from atoll.exchange.sizes import slices_of
from atoll.host.service import Host
from atoll.host.setup import open_run
from atoll.ids import INITIAL, Digest, PeerId, RoundId, digest_of
from atoll.model.layout import layout_of
from atoll.net import wire
from atoll.net.enrol import enrol
from atoll.net.identity import Identity
from atoll.net.invite import Invite
from atoll.net.transport import Connection, TcpTransport
from atoll.system import allow_many_files

NUM_REDUCERS = 2
AT_ONCE = 32  # members that come in
TRIES = 60  # of each, to enrol
FIRST = 1  # rounds that are not measured: members are still coming in


def config_of(num_members: int, *, heartbeat_s: float) -> RunConfig:
    return RunConfig(
        name="host-load",
        model=ModelConfig(
            vocab_size=4096, num_layers=1, width=8, num_heads=1, num_kv_heads=1, ffn_width=8
        ),
        data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),)),
        inner=InnerConfig(lr=1e-3, batch_sequences=2),
        sync=SyncConfig(
            rounds=1000,
            inner_steps=2,
            min_peers=num_members,
            heartbeat_s=heartbeat_s,
            silent_s=12 * heartbeat_s,
            reconnect_s=24 * heartbeat_s,
        ),
    )


# --- the host's process --------------------------------------------------------------------------


async def serve(directory: Path, num_members: int, port: int) -> None:
    """Serve the run of this directory, and print the invite."""
    allow_many_files()
    config = load_run_config(directory / "run.toml")
    opened = open_run(directory, config, dataset=digest_of(b"no text"))

    def show(event: object) -> None:
        if isinstance(event, RoundCommitted):
            print(f"round {event.round} has {len(event.roster)} contributors", file=sys.stderr)

    log = EventLog(directory / "events.jsonl", show=show)
    host = Host(
        opened.journal,
        authority=opened.authority,
        transport=TcpTransport(opened.identity),
        identity=opened.identity,
        advertise="127.0.0.1",
        emit=log.emit,
    )
    started = asyncio.Event()
    serving = asyncio.create_task(host.serve(host="127.0.0.1", port=port, started=started))
    await started.wait()
    print(await host.make_invite(uses=num_members, valid_s=3600.0), flush=True)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving


class HostProcess:
    """The host in a process of its own, and what the system says of that."""

    def __init__(self, directory: Path, num_members: int, *, port: int = 0) -> None:
        command = [sys.executable, __file__, "--serve", str(directory), str(num_members), str(port)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the host that we are gone
            stdout=subprocess.PIPE,
            stderr=(directory / "host.log").open("w"),
            text=True,
        )
        assert self._process.stdout is not None
        invite = self._process.stdout.readline().strip()
        if not invite:
            raise SystemExit((directory / "host.log").read_text())
        self.invite = Invite.parse(invite)

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory_bytes(self) -> int:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


# --- the members ---------------------------------------------------------------------------------


class Crowd:
    """What the members have in common: how far the rounds are, and what was measured of them."""

    def __init__(self, config: RunConfig, *, train_s: float, seed: int) -> None:
        self.config = config
        self.rng = Random(seed)
        self.train_s = train_s
        self.says: dict[PeerId, Member] = {}
        self.num_slices = len(slices_of(layout_of(config), RoundId(1)))
        self.formed: dict[tuple[RoundId, int], set[int]] = defaultdict(set)
        self.whole: dict[tuple[RoundId, int], asyncio.Event] = defaultdict(asyncio.Event)
        self.holders: Counter[RoundId] = Counter()
        self.held_at: dict[RoundId, float] = {}
        self.announced_s: dict[RoundId, list[float]] = {}
        self.messages: Counter[str] = Counter()
        self.bytes_to_members: Counter[str] = Counter()
        self.changed = asyncio.Event()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note_formed(self, job: wire.Reduce) -> None:
        key = (job.round, job.roster_version)
        self.formed[key].add(job.slice)
        if len(self.formed[key]) == self.num_slices:
            self.whole[key].set()

    def note_held(self, round_id: RoundId) -> None:
        self.holders[round_id] += 1
        if self.holders[round_id] == 2:
            self.held_at[round_id] = time.monotonic()

    def note_commit(self, round_id: RoundId) -> None:
        seconds = time.monotonic() - self.held_at[round_id]
        self.announced_s.setdefault(round_id, []).append(seconds)
        self.changed.set()

    async def all_have(self, round_id: RoundId) -> None:
        while len(self.announced_s.get(round_id, ())) < len(self.says):
            self.changed.clear()
            waiting = asyncio.ensure_future(self.changed.wait())
            await asyncio.wait((waiting, self.failed), return_when=asyncio.FIRST_COMPLETED)
            if self.failed.done():
                self.failed.result()


class Member:
    """One member: what an agent and its trainer say to the host."""

    def __init__(self, number: int, crowd: Crowd) -> None:
        self.number = number
        self.crowd = crowd
        self.identity = Identity.create()
        self.peer = self.identity.peer_id
        self.round = INITIAL
        self._tasks: set[asyncio.Task[None]] = set()

    async def come(self, invite: Invite) -> None:
        """Become a member, and say hello."""
        crowd, name = self.crowd, f"member-{self.number}"
        enrolled = await enrolled_at_last(invite, self.identity, name)
        transport, port = TcpTransport(self.identity), 0
        if self.number < NUM_REDUCERS:
            self._listener = await transport.listen(answer_probe, host="127.0.0.1", port=0)
            port = self._listener.port
        self._connection: Connection = await transport.dial(
            *invite.places[0], expect=enrolled.host, timeout_s=60.0
        )
        await self.say(
            wire.Hello(
                protocol=wire.PROTOCOL,
                run=run_digest(crowd.config),
                name=name,
                trains=True,
                listen_host="",
                listen_port=port,
                codecs=tuple(CODECS),
                round=INITIAL,
                state=state_of(INITIAL),
            )
        )
        crowd.says[self.peer] = self
        self.start(self._listen())
        self.start(self._beat())

    async def say(self, message: wire.Message) -> None:
        self.crowd.messages[type(message).__name__] += 1
        await self._connection.send(message)

    def start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.crowd.failed.done():
            self.crowd.failed.set_exception(error)

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._connection.close()

    async def _beat(self) -> None:
        every_s = self.crowd.config.sync.heartbeat_s
        await asyncio.sleep(self.crowd.rng.uniform(0, every_s))
        while True:
            beat = wire.Heartbeat(round=RoundId(self.round + 1), step=1, loss=2.0, tokens_per_s=1e3)
            await self.say(beat)
            await asyncio.sleep(every_s)

    async def _listen(self) -> None:
        while True:
            message = await self._connection.receive()
            kind = type(message).__name__
            self.crowd.messages[kind] += 1
            self.crowd.bytes_to_members[kind] += len(wire.encode(message))
            match message:
                case wire.Welcome():
                    await self._report()
                case wire.Plan():
                    self.start(self._take_part(message))
                case wire.Closed():
                    self.start(self._hold(message))
                case wire.Reduce():
                    self.start(self._reduce(message))
                case wire.Commit():
                    self.round = RoundId(self.round + 1)
                    self.crowd.note_commit(self.round)
                    await self._report()
                case wire.Refused() | wire.Stop():
                    raise RuntimeError(message.reason)
                case _:
                    pass

    async def _report(self) -> None:
        at = wire.AtState(
            round=self.round,
            state=state_of(self.round),
            device="none",
            up_bytes_per_s=2e6,
            down_bytes_per_s=1e7,
            samples_per_s=1.0,
        )
        await self.say(at)

    async def _take_part(self, plan: wire.Plan) -> None:
        """Train for a while, announce the contribution, and let the reducer have it."""
        await asyncio.sleep(self.crowd.rng.uniform(0.5, 1.0) * self.crowd.train_s)
        num_slices = self.crowd.num_slices
        digests = tuple(slice_of(plan.round, self.peer, k) for k in range(num_slices))
        await self.say(
            wire.Contribution(
                round=plan.round,
                leases=tuple(lease.id for lease in plan.leases),
                num_steps=2,
                mean_loss=2.0,
                digests=digests,
            )
        )
        for reduction in plan.reductions:
            for k in range(reduction.start, reduction.stop):
                delivered = wire.Delivered(
                    round=plan.round,
                    contributor=self.peer,
                    slice=k,
                    digest=digests[k],
                    squared_norm=1.0,
                )
                await self.crowd.says[reduction.reducer.peer].say(delivered)

    async def _reduce(self, job: wire.Reduce) -> None:
        reduced = wire.Reduced(
            round=job.round,
            roster_version=job.roster_version,
            slice=job.slice,
            digest=update_of(job.round, job.roster_version, job.slice),
        )
        await self.say(reduced)
        self.crowd.note_formed(job)

    async def _hold(self, closed: wire.Closed) -> None:
        """Fetch the update once it is formed, which takes a moment, and say so."""
        await self.crowd.whole[closed.round, closed.roster_version].wait()
        await asyncio.sleep(self.crowd.rng.uniform(0, 0.1 * self.crowd.train_s))
        version, num_slices = closed.roster_version, self.crowd.num_slices
        digests = tuple(update_of(closed.round, version, k) for k in range(num_slices))
        if self.round < closed.round:
            await self.say(
                wire.Fetched(round=closed.round, roster_version=version, start=0, stop=num_slices)
            )
            held = wire.Held(round=closed.round, roster_version=version, digests=digests)
            await self.say(held)
            self.crowd.note_held(closed.round)


async def enrolled_at_last(invite: Invite, identity: Identity, name: str) -> wire.Enrolled:
    """Enrol, again after a second when the host has no place for one more stranger."""
    for _ in range(TRIES):
        with suppress(ConnectionLost):
            return await enrol(invite, identity, name, timeout_s=60.0)
        await asyncio.sleep(1.0)
    raise SystemExit(f"{name} could not enrol in {TRIES} tries")


async def answer_probe(connection: Connection) -> None:
    """Be there: the host dials to see whether others could."""
    await connection.receive()


def state_of(round_id: RoundId) -> Digest:
    return digest_of(b"state %d" % round_id)


def slice_of(round_id: RoundId, peer: PeerId, k: int) -> Digest:
    return digest_of(f"slice {round_id} {peer} {k}".encode())


def update_of(round_id: RoundId, version: int, k: int) -> Digest:
    return digest_of(b"update %d %d %d" % (round_id, version, k))


# --- the measurement -----------------------------------------------------------------------------


async def measured(
    host: HostProcess, crowd: Crowd, *, num_members: int, rounds: int
) -> dict[str, object]:
    empty_bytes, began_at = host.memory_bytes, time.monotonic()
    waiting = iter([Member(number, crowd) for number in range(num_members)])

    async def come_in() -> None:
        for member in waiting:
            await member.come(host.invite)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(come_in())
    all_in_s, admission_cpu_s = time.monotonic() - began_at, host.cpu_s
    await crowd.all_have(RoundId(FIRST))
    crowd.messages.clear()
    crowd.bytes_to_members.clear()
    began_at, cpu_s = time.monotonic(), host.cpu_s
    own_cpu_s = time.process_time()
    await crowd.all_have(RoundId(FIRST + rounds))
    seconds = time.monotonic() - began_at
    host_cpu_s, own_cpu_s = host.cpu_s - cpu_s, time.process_time() - own_cpu_s
    waits_s = [
        s for r in range(FIRST + 1, FIRST + rounds + 1) for s in crowd.announced_s[RoundId(r)]
    ]
    percentiles = quantiles(waits_s, n=100)
    result = {
        "members": num_members,
        "rounds": rounds,
        "heartbeat_s": crowd.config.sync.heartbeat_s,
        "all_in_s": round(all_in_s, 1),
        "admission_cpu_ms_per_member": round(1e3 * admission_cpu_s / num_members, 2),
        "round_s": round(seconds / rounds, 2),
        "host_cores": round(host_cpu_s / seconds, 3),
        "host_cpu_s_per_round": round(host_cpu_s / rounds, 3),
        "host_cpu_ms_per_member_and_round": round(1e3 * host_cpu_s / rounds / num_members, 3),
        "own_cores": round(own_cpu_s / seconds, 3),
        "memory_mb": round(host.memory_bytes / 1e6, 1),
        "memory_kb_per_member": round((host.memory_bytes - empty_bytes) / 1e3 / num_members, 1),
        "announcement_p50_ms": round(1e3 * percentiles[49], 1),
        "announcement_p99_ms": round(1e3 * percentiles[98], 1),
        "messages_per_member_and_round": {
            kind: round(count / rounds / num_members, 2)
            for kind, count in sorted(crowd.messages.items())
        },
        "bytes_to_a_member_and_round": {
            kind: round(count / rounds / num_members)
            for kind, count in sorted(crowd.bytes_to_members.items())
        },
    }
    for member in crowd.says.values():
        await member.leave()
    return result


@contextmanager
def running_host(config: RunConfig, num_members: int) -> Iterator[HostProcess]:
    with tempfile.TemporaryDirectory(prefix="atoll-host-load-") as directory:
        (Path(directory) / "run.toml").write_text(template(config))
        host = HostProcess(Path(directory), num_members)
        try:
            yield host
        finally:
            host.end()


def load(num_members: int, *, rounds: int, train_s: float, heartbeat_s: float) -> dict[str, object]:
    config = config_of(num_members, heartbeat_s=heartbeat_s)

    async def main() -> dict[str, object]:
        crowd = Crowd(config, train_s=train_s, seed=1)
        with running_host(config, num_members) as host:
            return await measured(host, crowd, num_members=num_members, rounds=rounds)

    return asyncio.run(main())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("members", type=int, nargs="*")
    parser.add_argument("--rounds", type=int, default=3, help="that are measured")
    parser.add_argument("--train-s", type=float, default=10.0, help="of the slowest member")
    parser.add_argument("--heartbeat-s", type=float, default=5.0)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(Path(given.serve[0]), int(given.serve[1]), int(given.serve[2])))
        return 0
    allow_many_files()
    for num_members in given.members:
        result = load(
            num_members,
            rounds=given.rounds,
            train_s=given.train_s,
            heartbeat_s=given.heartbeat_s,
        )
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
