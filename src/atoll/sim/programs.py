"""What runs on the machines of a fleet: the host, and members, all of it the real code.

Only trainers and lines are simulated, and the moment at which a process dies.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from atoll.config import PeerConfig, RunConfig, parse_canonical
from atoll.data.shards import Dataset
from atoll.errors import PeerError
from atoll.events import Emit
from atoll.host.service import Host
from atoll.host.setup import RunDirectory, open_run
from atoll.net import wire
from atoll.net.identity import Identity
from atoll.peer.agent import Agent
from atoll.peer.home import Home, RunFile, write_run_file
from atoll.sim.journal import Moment, TappedStore
from atoll.sim.loop import Killed
from atoll.sim.seat import Seat
from atoll.sim.setting import HOST, PORT, TOKEN
from atoll.sim.trainer import Device
from atoll.train.shared import SharedVectors

RESTART_S = 2.0  # until the host starts its built-in member again, as `atoll host` does
RETRY_S = 1.0  # of a newcomer whose enrolment failed
ANSWER_S = 20.0
DATASETS = "datasets"  # the folder of a member's cache
DiesAt: TypeAlias = Callable[[Moment], bool]


class MemberProgram:
    """An agent; without a device, the built-in member, which serves the dataset."""

    def __init__(
        self,
        identity: Identity,
        directory: Path,
        *,
        device: Device | None,
        dataset: Dataset | None,
        emit: Emit,
    ) -> None:
        self.directory = directory
        self._identity = identity
        self._device = device
        self._dataset = dataset
        self._emit = emit
        self._home: Home | None = None
        self.agent: Agent | None = None  # of the process that runs now

    async def run(self, seat: Seat) -> bool:
        if not Identity.exists(self.directory):
            await self._enrol(seat)
        self._home = Home(self.directory, keep_states=2)
        agent = self.agent = Agent(
            self._home,
            PeerConfig(
                directory=str(self.directory),
                name=seat.name,
                cache_directory=str(self.directory / DATASETS),
                advertise_host=seat.machine.name,
            ),
            transport=seat.transport(self._identity.peer_id),
            start_trainer=None if self._device is None else self._device.start,
            emit=self._emit,
            make_vectors=SharedVectors.private,
        )
        if self._dataset is not None:
            agent.serve_dataset(self._dataset)
        return await agent.run()

    def release(self) -> None:
        self.agent = None
        if self._home is not None:
            self._home.close()
            self._home = None
        for lock in self.directory.glob(f"{DATASETS}/*.lock"):
            lock.unlink()

    async def _enrol(self, seat: Seat) -> None:
        """Become a member of the run, as `atoll join` does with an invite."""
        while True:
            with suppress(PeerError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    authority, enrolled = await self._answers(seat)
                    break
            await asyncio.sleep(RETRY_S)
        self._identity.certify(enrolled.certificate, authority.certificate)
        write_run_file(
            self.directory,
            RunFile(
                config=parse_canonical(enrolled.run_config),
                host=HOST,
                port=PORT,
                host_id=enrolled.host,
                built_in=enrolled.built_in,
            ),
        )
        self._identity.save(self.directory)

    async def _answers(self, seat: Seat) -> tuple[wire.Authority, wire.Enrolled]:
        stranger = seat.transport(None)
        connection = await stranger.dial(HOST, PORT, expect=None, timeout_s=ANSWER_S)
        try:
            await connection.send(wire.GetAuthority(protocol=wire.PROTOCOL))
            authority = await connection.receive()
            key = self._identity.public_key
            await connection.send(wire.Enrol(token=TOKEN, public_key=key, name=seat.name))
            enrolled = await connection.receive()
        finally:
            await connection.close()
        assert isinstance(authority, wire.Authority), authority
        assert isinstance(enrolled, wire.Enrolled), enrolled
        return authority, enrolled


class HostProgram:
    """The host; `host` is the one that runs now. With it, its built-in member starts and ends."""

    def __init__(self, directory: Path, config: RunConfig, dataset: Dataset, *, emit: Emit) -> None:
        self.host: Host | None = None
        self.built_in: Seat | None = None
        # Called before and after each append; returns whether the process dies at that moment.
        self.dies_at: DiesAt = lambda _: False
        self.far_journal = False  # as if it were in a database on another machine
        self._directory = directory
        self._config = config
        self._dataset = dataset
        self._emit = emit
        self._opened: RunDirectory | None = None

    async def run(self, seat: Seat) -> bool:
        self._opened = open_run(self._directory, self._config, dataset=self._dataset.digest)

        def tap(moment: Moment) -> None:
            if self.dies_at(moment):
                seat.die()
            if not seat.is_running:
                raise Killed

        journal = self._opened.journal
        journal.store = TappedStore(journal.store, tap, is_far=self.far_journal)
        self.host = Host(
            self._opened.journal,
            authority=self._opened.authority,
            transport=seat.transport(self._opened.identity.peer_id),
            identity=self._opened.identity,
            advertise=HOST,
            emit=self._emit,
        )
        started = asyncio.Event()
        keeping = asyncio.create_task(self._keep_built_in(started))
        try:
            await self.host.serve(host=HOST, port=PORT, started=started)
            return True
        finally:
            keeping.cancel()

    def release(self) -> None:
        self.host = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if self.built_in is not None:
            self.built_in.die()

    async def _keep_built_in(self, started: asyncio.Event) -> None:
        """Run the built-in member, again whenever it ends too early."""
        await started.wait()
        assert self.built_in is not None
        self.built_in.start_anew()  # what it has seen of the end of a former host is no matter
        while not self.built_in.is_done:
            await asyncio.sleep(RESTART_S)
            self.built_in.start()
