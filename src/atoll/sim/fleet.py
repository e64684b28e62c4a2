"""A host, its built-in member and peers, all of them the real code, on one virtual network.

    Setting --Fleet--> machines, each with a directory that outlives its processes
                       HostSeat: journal, Host, built-in member     PeerSeat: Home, Agent, Device

Only trainers and lines are simulated, and the moment at which a process dies.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, cast

from atoll.config import PeerConfig, RunConfig, parse_canonical, run_digest, template
from atoll.data.shards import Dataset
from atoll.errors import AtollError, PeerError
from atoll.events import Emit, Event
from atoll.host.journal import Journal
from atoll.host.service import Host
from atoll.host.setup import RunDirectory, open_run
from atoll.host.stores import JOURNAL_FILE
from atoll.ids import PeerId, RoundId
from atoll.model.layout import layout_of
from atoll.net import records, wire
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.net.invite import token_digest
from atoll.peer.agent import Agent
from atoll.peer.home import Home, RunFile, write_run_file
from atoll.peer.trainer import StartTrainer
from atoll.sim.journal import Moment, TappedJournal
from atoll.sim.links import LINKS
from atoll.sim.loop import EPOCH_S, Killed, Process, VirtualLoop
from atoll.sim.network import Machine, Network
from atoll.sim.setting import BUILT_IN, HOST, PORT, TOKEN, Keys, PeerSpec, Setting, write_dataset
from atoll.sim.trainer import Device, Idle, Model, Regression, Tally
from atoll.sim.transport import SimTransport
from atoll.train.shared import vectors_path

RESTART_S = 2.0  # until the host starts its built-in member again, as `atoll host` does
RETRY_S = 1.0  # of a newcomer whose enrolment failed
VALID_S = 10 * 365 * 86_400.0


class Seat:
    """One member on its machine. `process` is its present life; None: it is not running."""

    def __init__(self, name: str, machine: Machine, directory: Path, fleet: "Fleet") -> None:
        self.name = name
        self.machine = machine
        self.directory = directory
        self.process: Process | None = None
        self.device: Device | None = None
        self.ends: list[str] = []  # how each life ended by itself; empty: it was done
        self.peer_id: PeerId = fleet.keys.identity(name).peer_id
        self._fleet = fleet
        self._transport: SimTransport | None = None
        self._home: Home | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.is_alive

    @property
    def is_done(self) -> bool:
        """Whether it has seen the end of the run."""
        return not self.is_running and self.ends[-1:] == [""]

    def start(self) -> None:
        """Start the agent, which enrols first if it never did."""
        if self.is_running:
            return
        process = self.process = Process(self.name, self._fleet.loop)
        if self.device is not None:
            self.device.process = process
        process.spawn(self._live(process))

    def die(self) -> None:
        """End the process at once, wherever it is."""
        if self.process is None:
            return
        self.process.die()
        if self._transport is not None:
            self._transport.die()
        self._release()

    def freeze(self) -> None:
        if self.process is not None:
            self.process.freeze()
        self._note_frozen()

    def thaw(self) -> None:
        if self.process is not None:
            self.process.thaw()
        self._note_frozen()

    def _note_frozen(self) -> None:
        self.machine.frozen = self.process is not None and not self.process.is_running
        self._fleet.network.changed()

    def _release(self) -> None:
        """Do for a dead process what its kernel does: let go of its locks."""
        if self._home is not None:
            self._home.close()
            self._home = None
        for lock in self.directory.glob("datasets/*.lock"):
            lock.unlink()
        self.process = None
        self.machine.frozen = False

    async def _live(self, process: Process) -> None:
        end = ""
        try:
            if not Identity.exists(self.directory):
                await self._enrol(process)
            await self._take_part(process)
        except AtollError as error:
            end = f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - a bug: the judge of the run gets it
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{self.name} ended", "exception": error}
            )
            end = f"bug: {error!r}"
        self.ends.append(end)
        process.die()
        if self._transport is not None:
            self._transport.die()
        self._release()

    async def _take_part(self, process: Process) -> None:
        fleet = self._fleet
        self._home = Home(self.directory, keep_states=2)
        self._transport = fleet.transport(self.machine, process, self.peer_id)
        start: StartTrainer | None = None if self.device is None else self.device.start
        agent = Agent(
            self._home,
            PeerConfig(
                directory=str(self.directory),
                name=self.name,
                cache_directory=str(self.directory / "datasets"),
                advertise_host=self.machine.name,
            ),
            transport=self._transport,
            start_trainer=start,
            emit=fleet.emitter(self.name),
        )
        if self.device is None:
            agent.serve_dataset(fleet.dataset)
        await agent.run()

    async def _enrol(self, process: Process) -> None:
        """Become a member of the run, as `atoll join` does with an invite."""
        identity = self._fleet.keys.identity(self.name)
        while True:
            with suppress(PeerError):
                answer = await self._answer_to(identity, process)
                break
            await asyncio.sleep(RETRY_S)
        identity.certify(answer.certificate, self._fleet.authority.certificate)
        write_run_file(
            self.directory,
            RunFile(
                config=parse_canonical(answer.run_config),
                host=HOST,
                port=PORT,
                host_id=answer.host,
                built_in=answer.built_in,
            ),
        )
        identity.save(self.directory)

    async def _answer_to(self, identity: Identity, process: Process) -> wire.Enrolled:
        stranger = self._fleet.transport(self.machine, process, None)
        connection = await stranger.dial(HOST, PORT, expect=None, timeout_s=20.0)
        try:
            async with asyncio.timeout(20.0):
                await connection.send(wire.GetAuthority(protocol=wire.PROTOCOL))
                await connection.receive()
                await connection.send(
                    wire.Enrol(token=TOKEN, public_key=identity.public_key, name=self.name)
                )
                answer = await connection.receive()
        except TimeoutError as error:
            raise PeerError("the host does not answer") from error
        finally:
            await connection.close()
        assert isinstance(answer, wire.Enrolled), f"{self.name} is refused: {answer}"
        return answer


class HostSeat:
    """The host's machine: its directory, and the present life of the host."""

    def __init__(self, machine: Machine, directory: Path, fleet: "Fleet") -> None:
        self.machine = machine
        self.directory = directory
        self.host: Host | None = None
        self.process: Process | None = None
        self.ends: list[str] = []
        # Called before and after each append; returns whether the process dies at that moment.
        self.dies_at: Callable[[Moment, Sequence[records.Record]], bool] = lambda *_: False
        self._fleet = fleet
        self._opened: RunDirectory | None = None
        self._transport: SimTransport | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.is_alive

    @property
    def is_done(self) -> bool:
        return not self.is_running and self.ends[-1:] == [""]

    def start(self) -> None:
        if self.is_running:
            return
        process = self.process = Process(HOST, self._fleet.loop)
        process.spawn(self._live(process))

    def die(self) -> None:
        """End the host at once, and with it its built-in member."""
        if self.process is None:
            return
        self.process.die()
        self._release()
        self._fleet.built_in.die()

    def _tap(self, moment: Moment, appended: Sequence[records.Record]) -> None:
        process = self._fleet.host.process
        if process is None or self.dies_at(moment, appended):
            self.die()
            raise Killed

    def _release(self) -> None:
        if self._transport is not None:
            self._transport.die()
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self.process = self.host = None

    async def _live(self, process: Process) -> None:
        fleet, end = self._fleet, ""
        try:
            opened = self._opened = open_run(
                self.directory, fleet.config, dataset=fleet.dataset.digest
            )
            self._transport = fleet.transport(self.machine, process, opened.identity.peer_id)
            self.host = Host(
                cast(Journal, TappedJournal(opened.journal, self._tap)),
                authority=opened.authority,
                transport=self._transport,
                identity=opened.identity,
                advertise=HOST,
                emit=fleet.emitter(HOST),
            )
            started = asyncio.Event()
            keeping = asyncio.create_task(self._keep_built_in(started))
            await self.host.serve(host=HOST, port=PORT, started=started)
            keeping.cancel()
        except AtollError as error:
            end = f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - a bug: the judge of the run gets it
            fleet.loop.call_exception_handler({"message": "the host ended", "exception": error})
            end = f"bug: {error!r}"
        self.ends.append(end)
        process.die()
        self._release()

    async def _keep_built_in(self, started: asyncio.Event) -> None:
        """Run the built-in member, again whenever it ends too early."""
        await started.wait()
        built_in = self._fleet.built_in
        while True:
            built_in.start()
            while built_in.is_running:  # noqa: ASYNC110 - its process has no task that we could await
                await asyncio.sleep(RESTART_S)
            if built_in.is_done:
                return


class Fleet:
    """Everything that is simulated. `trace` is all that was reported: when, by whom, what."""

    def __init__(self, setting: Setting, directory: Path) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.setting = setting
        self.config: RunConfig = setting.run.config()
        self.keys = Keys(setting.seed)
        self.network = Network(Random(f"{setting.seed} network"))
        self.trace: list[tuple[float, str, Event]] = []
        self.watch: Callable[[str, Event], None] = lambda *_: None  # called for each of them
        self.dataset: Dataset = write_dataset(directory / "dataset")
        self.directory = directory / HOST
        self.authority = self._begin()
        machine = self.network.join(HOST, LINKS[setting.host_link])
        self.host = HostSeat(machine, self.directory, self)
        self.built_in = Seat(BUILT_IN, machine, self.directory / BUILT_IN, self)
        self.peers = {spec.name: self._seat(spec, directory / spec.name) for spec in setting.peers}

    def _begin(self) -> Authority:
        """Write the directory of a new run, with an invite that is good for everybody."""
        self.directory.mkdir(parents=True)
        (self.directory / "run.toml").write_text(template(self.config))
        authority = Authority.create(run=run_digest(self.config), key=self.keys.key("authority"))
        authority.save(self.directory)
        for name, folder in ((HOST, "host"), (BUILT_IN, BUILT_IN)):
            identity = self.keys.identity(name)
            certificate = authority.sign_member(identity.public_key, name)
            identity.certify(certificate, authority.certificate)
            identity.save(self.directory / folder)
        (self.directory / JOURNAL_FILE).touch()  # so that the run is not begun with other keys
        opened = self.opened()
        made = records.InviteMade(
            token=token_digest(TOKEN), uses=10**6, expires_at=EPOCH_S + VALID_S
        )
        opened.journal.append([made])
        write_run_file(
            self.directory / BUILT_IN,
            RunFile(
                config=self.config,
                host=HOST,
                port=PORT,
                host_id=opened.identity.peer_id,
                built_in=opened.built_in.peer_id,
            ),
        )
        opened.close()
        return authority

    def _seat(self, spec: PeerSpec, directory: Path) -> Seat:
        directory.mkdir()
        seat = Seat(spec.name, self.network.join(spec.name, LINKS[spec.link]), directory, self)
        rng = Random(f"{self.setting.seed} {spec.name}")
        seat.device = Device(self._model(), spec.step_s, rng)
        return seat

    def _model(self) -> Model:
        match self.setting.model:
            case "tally":
                fragments = layout_of(self.config).fragments
                size = min(fragment.stop - fragment.start for fragment in fragments)
                return Tally(tuple(fragment.start for fragment in fragments), size)
            case "regression":
                return Regression(self.setting.seed)
            case _:
                return Idle()

    # --- for those who take part ----------------------------------------------------------------

    def transport(self, machine: Machine, process: Process, peer: PeerId | None) -> SimTransport:
        return SimTransport(self.network, machine, process, peer)

    def emitter(self, name: str) -> Emit:
        def emit(event: Event) -> None:
            self.trace.append((self.loop.time(), name, event))
            self.watch(name, event)

        return emit

    # --- the whole of it ------------------------------------------------------------------------

    @property
    def seats(self) -> dict[str, Seat]:
        return {BUILT_IN: self.built_in, **self.peers}

    @property
    def committed(self) -> RoundId:
        """The newest round that the running host has committed."""
        host = self.host.host
        return RoundId(0) if host is None else host.run.committed

    def start(self) -> None:
        """Start the host, and each peer when it joins."""
        self.host.start()
        for spec in self.setting.peers:
            self.loop.call_later(spec.joins_at_s, self.peers[spec.name].start)

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once this is so; nobody announces it."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def ended(self) -> None:
        """Return once the run is complete, and all that run have seen it."""
        await self.until(
            lambda: self.host.is_done and not any(s.is_running for s in self.seats.values())
        )

    def opened(self) -> RunDirectory:
        """Return the run as a host finds it that is just starting; for the caller to close."""
        clerk = Process("clerk", self.loop)
        return clerk.run(lambda: open_run(self.directory, self.config, dataset=self.dataset.digest))

    def records(self) -> list[records.Record]:
        """Return what the journal has, when no host is running."""
        opened = self.opened()
        try:
            return [entry.record for entry in opened.journal.entries]
        finally:
            opened.close()

    def close(self) -> None:
        """Remove what lies outside the directory of the simulation."""
        self.host.die()
        for seat in self.seats.values():
            seat.die()
            vectors_path(seat.directory, layout_of(self.config).num_values).unlink(missing_ok=True)


Scene = Callable[[Fleet], Coroutine[Any, Any, None]]
