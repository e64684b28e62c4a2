"""atoll: contributions and updates as in any run, over TLS, but without a trainer and a journal.

Updates are written to the disk as they come; that they are on it when power fails, a run waits for
before it commits, and nobody here does.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np
from systems.peer import Setup, Vector, serve

from atoll.exchange.blobs import BlobStore
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import EncodedContribution, Vectors, deliver_to, deliver_to_self
from atoll.exchange.gather import Wanted, gather_from
from atoll.exchange.links import Links
from atoll.exchange.plan import send_order
from atoll.exchange.reduce import Means, Reducer, Reducers
from atoll.exchange.serve import BlobServer
from atoll.ids import Buffer, RoundId, digest_of
from atoll.net import wire
from atoll.net.identity import Identity
from atoll.net.listener import Limits
from atoll.net.transport import Connection, TcpTransport
from atoll.outer.layout import slice_bounds
from atoll.outer.manifest import CHUNK_BYTES

DIAL_S = 10.0
CHUNK = np.random.default_rng(0).bytes(CHUNK_BYTES)  # of a state, for joiners (see joiner.py)


class Member:
    """One peer's part of an exchange, on an event loop."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        hub = json.loads(setup.hub)
        self.identity = Identity.load(Path(hub["folder"]) / str(setup.rank))
        self.me = self.identity.peer_id
        self.port = hub["ports"][setup.rank]
        self.host = setup.addresses[setup.rank]
        self.hub_address = (hub["host"], hub["port"])
        self.bounds = slice_bounds(setup.num_values)
        self.codec = CODECS[setup.codec]
        self.transport = TcpTransport(self.identity, Limits(congestion=setup.congestion))
        self.links = Links(self.transport)
        # Updates are the same in each exchange: none may be there already.
        self.blobs = BlobStore(folder / "updates", young_turns=0)
        self.states = BlobStore(folder / "states")
        self.states.put(digest_of(CHUNK), CHUNK)
        self.outbox: asyncio.Queue[wire.Message] = asyncio.Queue()
        means = Means(self.blobs, self.outbox.put_nowait, self.links.buffers)
        self.reducers = Reducers(means)
        self.plans: asyncio.Queue[wire.Plan] = asyncio.Queue()
        self.rosters: asyncio.Queue[wire.Closed] = asyncio.Queue()
        self.closed = asyncio.Semaphore(0)
        self.plan: wire.Plan | None = None
        self.mean: Vector = np.full(setup.num_values, 0.0, np.float32)
        self.zeros: Vector = np.full(setup.num_values, 0.0, np.float32)  # the local weights

    async def run(self, joined: asyncio.Event) -> None:
        server = BlobServer(
            reducers=self.reducers,
            updates=self.blobs.locate,
            states=[self.states.locate],
            links=self.links,
        )
        await self.transport.listen(server.serve, host=self.host, port=self.port)
        hub = await self.transport.dial(*self.hub_address, expect=None, timeout_s=DIAL_S)
        joined.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.tell(hub))
            while True:
                match await hub.receive():
                    case wire.Plan() as plan:
                        self.plans.put_nowait(plan)
                    case wire.Closed() as closed:
                        self.rosters.put_nowait(closed)
                    case wire.Stop():
                        self.closed.release()
                    case wire.Reduce() as job:
                        group.create_task(self.form(job))
                    case _:
                        pass

    async def form(self, job: wire.Reduce) -> None:
        reducer = self.reducer_of(job.round)
        if await reducer.has_inputs(job):
            await reducer.form(job)

    def reducer_of(self, round_id: RoundId) -> Reducer:
        reducer = self.reducers.of(round_id)
        assert reducer is not None, "the hub has one round open"
        return reducer

    async def tell(self, hub: Connection) -> None:
        while True:
            await hub.send(await self.outbox.get())

    async def next_plan(self) -> None:
        self.outbox.put_nowait(wire.Heartbeat())
        plan = self.plan = await self.plans.get()
        self.blobs.turn()
        self.blobs.sweep(())
        own = [r for r in plan.reductions if r.reducer.peer == self.me]
        self.reducers.follow(plan, own=own, sizes=[b - a for a, b in self.bounds])

    async def exchange(self, vector: Vector) -> Vector:
        assert self.plan is not None
        plan = self.plan
        async with asyncio.TaskGroup() as group:
            group.create_task(self.contribute(plan, vector))
            roster = await self.rosters.get()
            mean = self.mean
            async with asyncio.TaskGroup() as gathering:
                for reduction in plan.reductions:
                    gathering.create_task(self.gather(plan, roster, reduction, mean))
            await self.closed.acquire()
        self.links.end_round()
        return mean

    async def contribute(self, plan: wire.Plan, vector: Vector) -> None:
        contribution = EncodedContribution(plan.round, self.bounds, self.links.buffers)
        order = send_order([(run.start, run.stop) for run in plan.reductions])
        vectors = Vectors(vector, self.zeros)
        async with asyncio.TaskGroup() as group:
            for run in plan.reductions:
                group.create_task(self.deliver(run, contribution))
            digests = await contribution.encode(self.codec, vectors, order=order)
            self.outbox.put_nowait(
                wire.Contribution(
                    round=plan.round, leases=(), num_steps=1, mean_loss=0.0, digests=digests
                )
            )
        contribution.close()

    async def deliver(self, run: wire.Reduction, contribution: EncodedContribution) -> None:
        indices = range(run.start, run.stop)
        if run.reducer.peer == self.me:
            await deliver_to_self(
                indices,
                contribution=contribution,
                reducer=self.reducer_of(contribution.round_id),
                peer=self.me,
                delivered=lambda *_: None,
            )
            return

        async def bring(connection: Connection, part: Sequence[int]) -> None:
            await deliver_to(
                connection,
                part,
                contribution=contribution,
                links=self.links,
                delivered=lambda *_: None,
            )

        await self.links.share_out(run.reducer, indices, bring)

    async def gather(
        self,
        plan: wire.Plan,
        roster: wire.Closed,
        run: wire.Reduction,
        mean: Vector,
    ) -> None:
        def decode(index: int, payload: Buffer) -> None:
            start, stop = self.bounds[index]
            self.codec.decode(payload, stop - start, mean[start:stop])

        if run.reducer.peer == self.me:
            for index in range(run.start, run.stop):
                own = await self.reducer_of(plan.round).sum((1, None, index))
                assert own is not None
                decode(index, own[1])
            return
        wanted = Wanted(
            round=plan.round,
            roster_version=roster.roster_version,
            codec=self.codec,
            sizes=tuple(b - a for a, b in self.bounds),
        )

        async def fetch(connection: Connection, part: Sequence[int]) -> None:
            await gather_from(
                connection,
                part,
                wanted=wanted,
                blobs=self.blobs,
                links=self.links,
                gathered=lambda index, _, payload: decode(index, payload),
            )

        await self.links.share_out(run.reducer, range(run.start, run.stop), fetch)


class Atoll:
    def __init__(self, setup: Setup) -> None:
        self.folder = TemporaryDirectory(prefix="atoll-exchange-")
        self.loop = asyncio.new_event_loop()
        Thread(target=self.loop.run_forever, daemon=True).start()
        self.member = self.wait(self.joined(setup))
        self.vector: Vector = np.zeros(0, np.float32)

    async def joined(self, setup: Setup) -> Member:
        member, joined = Member(setup, Path(self.folder.name)), asyncio.Event()
        running = asyncio.ensure_future(member.run(joined))
        await asyncio.wait(
            (running, asyncio.ensure_future(joined.wait())), return_when="FIRST_COMPLETED"
        )
        if running.done():
            running.result()
        self.running = running
        return member

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def load(self, vector: Vector) -> None:
        self.vector = vector
        self.wait(self.member.next_plan())

    def exchange(self) -> Vector:
        mean: Vector = self.wait(self.member.exchange(self.vector))
        return mean

    def close(self) -> None:
        self.folder.cleanup()


if __name__ == "__main__":
    serve(Atoll)
