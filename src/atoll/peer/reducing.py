"""A member as a reducer: it forms what the host asks for, from what comes and what it fetches.

    contributions ----take----> Reducer --> update, or partial sum of a region
    partial sums  <---fetch---  of the groups below, as they are formed
    update        <---fetch---  from the one above, for the members of the region

For each round the jobs of the newest roster hold. A job that comes again says that a reducer above
or below is another one by now; what was fetched from the one before it stays.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from atoll.exchange.gather import Wanted
from atoll.exchange.reduce import Reducer, SumName
from atoll.exchange.tasks import group, running
from atoll.ids import Buffer, Digest, PeerId, RoundId
from atoll.net import wire
from atoll.peer.gathering import gather_all
from atoll.peer.member import Member

Source: TypeAlias = tuple[int | None, PeerId]  # a group (None: of the updates), and its reducer
Order: TypeAlias = tuple[wire.Address, tuple[int, ...]]  # where to fetch, and which slices


@dataclass(eq=False)
class Jobs:
    """What is to be done for one roster of a round, and so what to fetch from whom."""

    round: RoundId
    roster_version: int
    of: dict[tuple[int | None, int], wire.Reduce] = field(default_factory=dict)
    sources: dict[Source, Order] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, job: wire.Reduce) -> None:
        self.of[job.group, job.slice] = job
        slices: dict[Source, set[int]] = {}
        addresses: dict[PeerId, wire.Address] = {}
        for one in self.of.values():
            for from_group, address in _fetched_for(one):
                slices.setdefault((from_group, address.peer), set()).add(one.slice)
                addresses[address.peer] = address
        self.sources = {
            source: (addresses[source[1]], tuple(sorted(wanted)))
            for source, wanted in slices.items()
        }
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        await self._changed.wait()


def _fetched_for(job: wire.Reduce) -> Iterator[tuple[int | None, wire.Address]]:
    for part in job.parts:
        if part.reducer is not None:
            yield part.group, part.reducer
    if job.parent is not None:
        yield None, job.parent


class Reducing:
    """Does the jobs that the host has for this member, each roster in a task of its own."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._asked: asyncio.Queue[wire.Reduce] = asyncio.Queue()
        self._open: dict[RoundId, tuple[Jobs, asyncio.Task[None]]] = {}

    def ask(self, job: wire.Reduce) -> None:
        self._asked.put_nowait(job)

    async def run(self) -> None:
        """Do what is asked; it never returns.

        Raises:
            RunError: the disk is full.
        """
        async with group() as start:
            while True:
                job = await self._asked.get()
                if (reducer := self._member.reducers.of(job.round)) is None:
                    continue  # the round is over
                jobs, task = self._open.get(job.round, (None, None))
                if jobs is None or jobs.roster_version != job.roster_version:
                    if task is not None:
                        task.cancel()  # what it forms is void
                    jobs = Jobs(job.round, job.roster_version)
                    self._open[job.round] = jobs, start(self._until_over(jobs, reducer))
                jobs.put(job)
                self._open = {
                    round_id: open_ for round_id, open_ in self._open.items() if not open_[1].done()
                }

    async def _until_over(self, jobs: Jobs, reducer: Reducer) -> None:
        async with running(self._do_all(jobs, reducer)):
            await reducer.over()

    async def _do_all(self, jobs: Jobs, reducer: Reducer) -> None:
        """Form what can be formed, and fetch what that takes, as jobs come."""
        forming: dict[tuple[int | None, int], asyncio.Task[None]] = {}
        fetching: set[Source] = set()
        done: dict[tuple[int | None, int], wire.Reduce] = {}
        async with group() as start:
            while True:
                for key, job in jobs.of.items():
                    is_under_way = key in forming and not forming[key].done()
                    if not is_under_way and done.get(key) is not job:
                        done[key] = job
                        forming[key] = start(self._form(job, reducer))
                for source in [each for each in jobs.sources if each not in fetching]:
                    fetching.add(source)
                    start(self._fetch(source, jobs, reducer))
                await jobs.change()

    async def _form(self, job: wire.Reduce, reducer: Reducer) -> None:
        if not reducer.tells_again(job) and await reducer.has_inputs(job):
            with self._member.accounts.timed("reduce", job.round):
                too_large = await reducer.form(job)
            for part in job.parts:
                if part.group == too_large and part.reducer is not None:
                    self._member.complain(job.round, part.reducer.peer)

    async def _fetch(self, source: Source, jobs: Jobs, reducer: Reducer) -> None:
        """Fetch from this source whatever is to be had from it, as long as it is one."""
        while True:
            order = jobs.sources.get(source)
            if order is None:
                await jobs.change()
                continue
            async with running(self._fetch_all(source[0], order, jobs, reducer)):
                while jobs.sources.get(source) == order:
                    await jobs.change()

    async def _fetch_all(
        self, from_group: int | None, order: Order, jobs: Jobs, reducer: Reducer
    ) -> None:
        address, slices = order
        member = self._member

        def name(index: int) -> SumName:
            return jobs.roster_version, from_group, index

        def note(index: int, digest: Digest, payload: Buffer) -> None:
            reducer.take_in(name(index), digest, bytes(payload))  # its memory is used again
            member.traffic.updates_received += len(payload)

        wanted = Wanted(
            round=jobs.round,
            roster_version=jobs.roster_version,
            codec=reducer.update_codec if from_group is None else reducer.partial_codec,
            sizes=reducer.sizes,
            group=from_group,
        )

        def missing() -> list[int]:
            return [k for k in slices if not reducer.has_fetched(name(k))]

        if address.peer == member.peer_id:
            for index in missing():
                if (found := await reducer.sum(name(index))) is not None:
                    reducer.take_in(name(index), *found)
            return
        await gather_all(
            missing,
            address,
            wanted=wanted,
            blobs=member.blobs if from_group is None else None,
            gathered=note,
            member=member,
        )
