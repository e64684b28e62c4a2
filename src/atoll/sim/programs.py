"""What runs on the machines of a fleet: the host, and members, all of it the real code.

Only trainers and lines are simulated, and the moment at which a process dies.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock

from atoll.config import PeerConfig, RunConfig, parse_canonical
from atoll.data.shards import Dataset
from atoll.errors import PeerError
from atoll.events import Emit
from atoll.host.journal import Journal
from atoll.host.lead import Shared
from atoll.host.service import Host
from atoll.host.setup import RunDirectory, open_run
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.peer.agent import Agent
from atoll.peer.home import Home, RunFile, write_run_file
from atoll.sim.database import Database, DatabaseStore
from atoll.sim.journal import Moment, TappedStore
from atoll.sim.loop import Killed
from atoll.sim.network import Machine
from atoll.sim.seat import Seat
from atoll.sim.setting import BUILT_IN, HOST, PORT, TOKEN
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
        hosts: tuple[str, ...] = (HOST,),
        emit: Emit,
    ) -> None:
        self.directory = directory
        self._hosts = hosts  # of its invite
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
        authority, enrolled = await self._answers_of_the_leader(seat)
        self._identity.certify(enrolled.certificate, authority.certificate)
        first, *others = self._hosts
        write_run_file(
            self.directory,
            RunFile(
                config=parse_canonical(enrolled.run_config),
                host=first,
                port=PORT,
                host_id=enrolled.host,
                built_in=enrolled.built_in,
                others=tuple(wire.HostAddress(host=host, port=PORT) for host in others),
            ),
        )
        self._identity.save(self.directory)

    async def _answers_of_the_leader(self, seat: Seat) -> tuple[wire.Authority, wire.Enrolled]:
        places = cycle(self._hosts)
        while True:
            with suppress(PeerError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    return await self._answers(seat, next(places))
            await asyncio.sleep(RETRY_S)

    async def _answers(self, seat: Seat, host: str) -> tuple[wire.Authority, wire.Enrolled]:
        stranger = seat.transport(None)
        connection = await stranger.dial(host, PORT, expect=None, timeout_s=ANSWER_S)
        try:
            await connection.send(wire.GetAuthority(protocol=wire.PROTOCOL))
            authority = await connection.receive()
            if isinstance(authority, wire.Refused):
                raise PeerError(authority.reason)  # it stands by
            key = self._identity.public_key
            await connection.send(wire.Enrol(token=TOKEN, public_key=key, name=seat.name))
            enrolled = await connection.receive()
        finally:
            await connection.close()
        assert isinstance(authority, wire.Authority), authority
        assert isinstance(enrolled, wire.Enrolled), enrolled
        return authority, enrolled


class HostProgram:
    """A host; `host` is the one that runs now. With it, its built-in member starts and ends.

    `database` is where it has its journal, and on which machine; None: in a file.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        dataset: Dataset,
        *,
        database: tuple[Database, Machine] | None = None,
        emit: Emit,
    ) -> None:
        self.host: Host | None = None
        self.built_in: Seat | None = None
        # Called before and after each append; returns whether the process dies at that moment.
        self.dies_at: DiesAt = lambda _: False
        self.far_journal = False  # as if it were in a database on another machine
        self._directory = directory
        self._config = config
        self._dataset = dataset
        self._database = database
        self._emit = emit
        self._opened: RunDirectory | None = None

    async def run(self, seat: Seat) -> bool:
        opened = self._opened = self._open(seat)

        def tap(moment: Moment) -> None:
            if self.dies_at(moment):
                seat.die()
            if not seat.is_running:
                raise Killed

        journal = opened.journal
        is_far = self.far_journal or opened.shared is not None
        journal.store = TappedStore(journal.store, tap, is_far=is_far)
        self.host = Host(
            journal,
            authority=opened.authority,
            transport=seat.transport(opened.identity.peer_id),
            identity=opened.identity,
            advertise=seat.name,
            emit=self._emit,
        )
        leading = None
        if opened.shared is not None:
            # As operators are told to: whoever is there first leads, and the other one stands by.
            lead_s = self._config.sync.silent_s
            leading = Shared(journal, opened.shared, lead_s=lead_s, standby=True, emit=self._emit)
        started = asyncio.Event()
        keeping = asyncio.create_task(self._keep_built_in(started))
        try:
            await self.host.serve(host=seat.name, port=PORT, started=started, leading=leading)
            return True
        finally:
            keeping.cancel()

    def _open(self, seat: Seat) -> RunDirectory:
        if self._database is None:
            return open_run(self._directory, self._config, dataset=self._dataset.digest)
        database, there = self._database
        store = DatabaseStore(database, lambda: seat.reaches(there))
        authority = Authority.load(self._directory)
        return RunDirectory(
            path=self._directory,
            lock=FileLock(self._directory / "host.lock"),
            journal=Journal(store, sign=authority.sign),
            shared=store,
            authority=authority,
            identity=Identity.load(self._directory / "host"),
            built_in=Identity.load(self._directory / BUILT_IN),
            notes=(),
        )

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
