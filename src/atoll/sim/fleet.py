"""A host, its built-in member and peers on one virtual network.

Setting --Fleet--> machines, each with a Seat, a program in it, and a directory that lasts
"""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from atoll.config import RunConfig, run_digest, template
from atoll.events import Emit, Event
from atoll.host.setup import RunDirectory, open_run
from atoll.host.stores import JOURNAL_FILE, open_file
from atoll.ids import PeerId
from atoll.model.layout import layout_of
from atoll.net.authority import Authority
from atoll.net.invite import token_digest
from atoll.net.records import InviteMade, Record
from atoll.peer.home import RunFile, write_run_file
from atoll.sim.database import Database
from atoll.sim.links import LINKS
from atoll.sim.loop import EPOCH_S, Condition, Process, VirtualLoop
from atoll.sim.network import Machine, Network
from atoll.sim.programs import DATASETS, HostProgram, MemberProgram
from atoll.sim.seat import Seat
from atoll.sim.setting import (
    BUILT_IN,
    DATABASE,
    HOST,
    PORT,
    STANDBY,
    STANDBY_BUILT_IN,
    TOKEN,
    Keys,
    PeerSpec,
    Setting,
    write_dataset,
)
from atoll.sim.trainer import Device, Idle, Model, Regression, Tally

VALID_S = 10 * 365 * 86_400.0


class Fleet:
    """Everything that is simulated. `trace` is all that was reported: when, by whom, what.

    But for what `keeps` leaves out: with thousands of peers that is gigabytes.
    """

    def __init__(self, setting: Setting, directory: Path) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.setting = setting
        self.config: RunConfig = setting.run.config()
        self.keys = Keys(setting.seed)
        self.network = Network(
            Random(f"{setting.seed} network"),
            between_s=setting.between_s,
            tells_round_trips=setting.tells_round_trips,
        )
        self.trace: list[tuple[float, str, Event]] = []
        self.keeps: Callable[[Event], bool] = lambda _: True
        self.watch: Callable[[str, Event], None] = lambda *_: None  # called for each of them
        self.directory = directory / HOST
        self.dataset = write_dataset(directory / "dataset")
        self.devices: dict[str, Device] = {}
        self.programs: dict[str, MemberProgram] = {}
        self.database = Database(now=loop.time) if setting.standby else None
        self.hosts: dict[str, Seat] = {}
        self.host_programs: dict[str, HostProgram] = {}
        self.members: dict[str, Seat] = {}
        self._begin()
        self._settle_host(HOST, BUILT_IN)
        self.host = self.hosts[HOST]
        for spec in setting.peers:
            machine = self.network.join(spec.name, LINKS[spec.link], spec.place)
            self.members[spec.name] = self._seat(spec.name, machine, spec)
        if setting.standby:
            self._settle_host(STANDBY, STANDBY_BUILT_IN)

    def _settle_host(self, name: str, built_in: str) -> None:
        """Put a host on a machine of its own, and its built-in member beside it."""
        setting, network = self.setting, self.network
        link = LINKS[setting.host_link]
        machine = network.join(name, link)
        database = None
        if self.database is not None:
            there = network.machines.get(DATABASE) or network.join(DATABASE, link)
            database = (self.database, there)
        program = self.host_programs[name] = HostProgram(
            self.directory.parent / name,
            self.config,
            self.dataset,
            database=database,
            emit=self._emitter(name),
        )
        program.far_journal = setting.far_journal
        is_service = database is not None
        self.hosts[name] = Seat(name, machine, program, network, is_service=is_service)
        program.built_in = self.members[built_in] = self._seat(built_in, machine)

    def _begin(self) -> None:
        """Write the directories of a new run, with an invite that is good for everybody."""
        self.directory.mkdir()
        (self.directory / "run.toml").write_text(template(self.config))
        authority = Authority.create(run=run_digest(self.config), key=self.keys.key("authority"))
        authority.save(self.directory)
        for name, folder in ((HOST, "host"), (BUILT_IN, BUILT_IN)):
            identity = self.keys.identity(name)
            certificate = authority.sign_member(identity.public_key, name)
            identity.certify(certificate, authority.certificate)
            identity.save(self.directory / folder)
        (self.directory / JOURNAL_FILE).touch()  # else the run would begin with other keys
        opened = self.opened()
        expires_at = EPOCH_S + VALID_S
        invite = InviteMade(token=token_digest(TOKEN), uses=10**6, expires_at=expires_at)
        opened.journal.append([invite])
        opened.close()
        if self.database is not None:
            self.database.entries += opened.journal.entries
            shutil.copytree(self.directory, self.directory.parent / STANDBY)  # as `atoll keys` does
        for host, built_in in ((HOST, BUILT_IN), (STANDBY, STANDBY_BUILT_IN)):
            if self.home(built_in).is_dir():
                run_file = RunFile(
                    config=self.config,
                    host=host,
                    port=PORT,
                    host_id=opened.identity.peer_id,
                    built_in=opened.built_in.peer_id,
                )
                write_run_file(self.home(built_in), run_file)

    def _seat(self, name: str, machine: Machine, spec: PeerSpec | None = None) -> Seat:
        if spec is not None:
            rng = Random(f"{self.setting.seed} {name}")
            self.devices[name] = Device(self._model(), spec.step_s, rng)
            self.home(name).mkdir()
            if spec.has_dataset:
                cache = self.home(name) / DATASETS
                cache.mkdir()
                (cache / self.dataset.digest).symlink_to(self.dataset.folder)
        hosts = (HOST,) if self.database is None else (HOST, STANDBY)
        program = self.programs[name] = MemberProgram(
            self.keys.identity(BUILT_IN if spec is None else name),
            self.home(name),
            device=self.devices.get(name),
            dataset=self.dataset if spec is None else None,
            hosts=hosts,
            emit=self._emitter(name),
        )
        seat = Seat(name, machine, program, self.network)
        if spec is not None:
            self.devices[name].condition = seat.condition
        return seat

    def _model(self) -> Model:
        match self.setting.model:
            case "tally":
                return Tally.of(layout_of(self.config))
            case "regression":
                return Regression(self.setting.seed)
            case _:
                return Idle()

    def _emitter(self, name: str) -> Emit:
        def emit(event: Event) -> None:
            if self.keeps(event):
                self.trace.append((self.loop.time(), name, event))
            self.watch(name, event)

        return emit

    # --- who is there ---------------------------------------------------------------------------

    @property
    def seats(self) -> dict[str, Seat]:
        return {**self.hosts, **self.members}

    def peer_id(self, name: str) -> PeerId:
        return self.keys.identity(name).peer_id

    def home(self, name: str) -> Path:
        """Return the directory of a member."""
        folder = self.directory.parent
        beside = {BUILT_IN: HOST, STANDBY_BUILT_IN: STANDBY}  # whose machine it is on
        return folder / beside[name] / BUILT_IN if name in beside else folder / name

    # --- the whole of it ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the hosts, and each peer when it joins."""
        for host in self.hosts.values():
            host.start()
        for spec in self.setting.peers:
            self.loop.call_later(spec.joins_at_s, self.members[spec.name].start)

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once this is so; nobody announces it."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def ended(self) -> None:
        """Return once the run is complete, and all that run have seen it."""
        await self.until(lambda: self.is_complete and not self.still_running())

    @property
    def is_complete(self) -> bool:
        """Whether a host has come to the end of the run."""
        return any(host.is_done for host in self.hosts.values())

    def still_running(self) -> list[str]:
        """Return who runs, and is not frozen."""
        return [name for name, s in self.seats.items() if s.is_running and not s.is_frozen]

    def opened(self) -> RunDirectory:
        """Return the run as a host finds it that is just starting; for the caller to close."""
        clerk = Process("clerk", self.loop, Condition())
        dataset = self.dataset.digest
        return clerk.run(lambda: open_run(self.directory, self.config, dataset=dataset))

    def records(self) -> list[Record]:
        """Return what the journal has, when no host is running; from now on it is in a file."""
        if self.database is not None:
            store = open_file(self.directory)
            store.append(self.database.entries[len(store.read()) :])
            store.close()
        opened = self.opened()
        try:
            return [entry.record for entry in opened.journal.entries]
        finally:
            opened.close()

    def close(self) -> None:
        """End what still runs."""
        for seat in self.seats.values():
            seat.die()
