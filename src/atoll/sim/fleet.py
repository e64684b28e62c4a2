"""A host, its built-in member and peers on one virtual network.

Setting --Fleet--> machines, each with a Seat, a program in it, and a directory that lasts
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

from atoll.config import RunConfig, run_digest, template
from atoll.events import Emit, Event
from atoll.host.setup import RunDirectory, open_run
from atoll.host.stores import JOURNAL_FILE
from atoll.ids import PeerId
from atoll.model.layout import layout_of
from atoll.net.authority import Authority
from atoll.net.invite import token_digest
from atoll.net.records import InviteMade, Record
from atoll.peer.home import RunFile, write_run_file
from atoll.sim.links import LINKS
from atoll.sim.loop import EPOCH_S, Condition, Process, VirtualLoop
from atoll.sim.network import Machine, Network
from atoll.sim.programs import DATASETS, HostProgram, MemberProgram
from atoll.sim.seat import Seat
from atoll.sim.setting import BUILT_IN, HOST, PORT, TOKEN, Keys, PeerSpec, Setting, write_dataset
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
        self._begin()
        machine = self.network.join(HOST, LINKS[setting.host_link])
        self.program = HostProgram(
            self.directory, self.config, self.dataset, emit=self._emitter(HOST)
        )
        self.program.far_journal = setting.far_journal
        self.host = Seat(HOST, machine, self.program, self.network)
        self.program.built_in = self._seat(BUILT_IN, machine)
        self.members = {BUILT_IN: self.program.built_in}
        for spec in setting.peers:
            machine = self.network.join(spec.name, LINKS[spec.link], spec.place)
            self.members[spec.name] = self._seat(spec.name, machine, spec)

    def _begin(self) -> None:
        """Write the directory of a new run, with an invite that is good for everybody."""
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
        run_file = RunFile(
            config=self.config,
            host=HOST,
            port=PORT,
            host_id=opened.identity.peer_id,
            built_in=opened.built_in.peer_id,
        )
        write_run_file(self.home(BUILT_IN), run_file)
        opened.close()

    def _seat(self, name: str, machine: Machine, spec: PeerSpec | None = None) -> Seat:
        if spec is not None:
            rng = Random(f"{self.setting.seed} {name}")
            self.devices[name] = Device(self._model(), spec.step_s, rng)
            self.home(name).mkdir()
            if spec.has_dataset:
                cache = self.home(name) / DATASETS
                cache.mkdir()
                (cache / self.dataset.digest).symlink_to(self.dataset.folder)
        program = self.programs[name] = MemberProgram(
            self.keys.identity(name),
            self.home(name),
            device=self.devices.get(name),
            dataset=self.dataset if spec is None else None,
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
        return {HOST: self.host, **self.members}

    def peer_id(self, name: str) -> PeerId:
        return self.keys.identity(name).peer_id

    def home(self, name: str) -> Path:
        """Return the directory of a member."""
        parent = self.directory if name == BUILT_IN else self.directory.parent
        return parent / name

    # --- the whole of it ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the host, and each peer when it joins."""
        self.host.start()
        for spec in self.setting.peers:
            self.loop.call_later(spec.joins_at_s, self.members[spec.name].start)

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once this is so; nobody announces it."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def ended(self) -> None:
        """Return once the run is complete, and all that run have seen it."""
        await self.until(lambda: self.host.is_done and not self.still_running())

    def still_running(self) -> list[str]:
        """Return who runs, and is not frozen."""
        return [name for name, s in self.seats.items() if s.is_running and not s.is_frozen]

    def opened(self) -> RunDirectory:
        """Return the run as a host finds it that is just starting; for the caller to close."""
        clerk = Process("clerk", self.loop, Condition())
        dataset = self.dataset.digest
        return clerk.run(lambda: open_run(self.directory, self.config, dataset=dataset))

    def records(self) -> list[Record]:
        """Return what the journal has, when no host is running."""
        opened = self.opened()
        try:
            return [entry.record for entry in opened.journal.entries]
        finally:
            opened.close()

    def close(self) -> None:
        """End what still runs."""
        for seat in self.seats.values():
            seat.die()
