"""`atoll host`: serve a run, with its built-in member beside."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from atoll import system
from atoll.cli.operator import URL_FILE, HostOperator, operator_token
from atoll.cli.options import CacheOption, DaysOption, UsesOption, valid_s
from atoll.cli.places import cache_directory, run_directory
from atoll.cli.show import Lines, console, next_steps, progress
from atoll.config import RunConfig, load_run_config
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset
from atoll.errors import ConfigError
from atoll.events import DashboardServed, Event, EventLog, Stamped, Warned, newest_events
from atoll.exchange.tasks import running
from atoll.host.lead import Alone, Leading, Shared
from atoll.host.service import Host
from atoll.host.setup import RunDirectory, open_run
from atoll.host.stores import journal_url
from atoll.net.http import in_url
from atoll.net.identity import write_private
from atoll.net.transport import TcpTransport
from atoll.peer.home import RunFile, write_run_file

if TYPE_CHECKING:
    from atoll.web.board import Board

SEEN_BYTES = 8_000_000  # of what the host reported in earlier lives, for the dashboard
JournalOption = Annotated[
    str,
    typer.Option(
        help="postgresql://... that keeps the journal, for all hosts of the run; "
        "remembered in the run's directory.",
        show_default="a file of the directory",
    ),
]
StandbyOption = Annotated[
    bool, typer.Option("--standby", help="Follow a shared journal; lead when nobody does.")
]
LeadOption = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="With a shared journal: how long behind its last sign of life a host still leads.",
        show_default="sync.silent_s",
    ),
]
RESTART_S = 2.0  # before the built-in member is started again
LAST_BYTES = 4096  # of its log, in which it says why it has ended


def host(
    run: Annotated[Path, typer.Argument(help="The run's directory, or its run.toml.")],
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for peers; 0: any free one.")
    ] = 7777,
    reducer_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            help="Port of the built-in member, which averages if no peer can; 0: any free one.",
        ),
    ] = 7778,
    advertise: Annotated[
        str, typer.Option(help="Name or address that peers know this machine by; empty: guessed.")
    ] = "",
    web: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the dashboard; 0: any free one.")
    ] = 7780,
    no_web: Annotated[bool, typer.Option("--no-web", help="Serve no dashboard.")] = False,
    uses: UsesOption = 100,
    days: DaysOption = 7.0,
    journal: JournalOption = "",
    standby: StandbyOption = False,
    lead_s: LeadOption = None,
    cache: CacheOption = None,
) -> None:
    """Serve a run: admit peers, decide rounds, keep the journal. Ctrl-C stops it; again goes on."""
    good_for_s = valid_s(days)
    directory = run_directory(run)
    config = load_run_config(directory / "run.toml")
    if standby and not (journal or journal_url(directory)):
        raise ConfigError(
            "a standby follows a journal that it shares with the leader",
            hint="start both with --journal postgresql://...; without: see docs/operators.md",
        )
    dataset = prepare(
        config,
        base_directory=directory,
        directory=cache or cache_directory(),
        on_progress=progress("preparing the text", of="documents"),
    )
    opened = open_run(directory, config, dataset=dataset.digest, url=journal)
    try:
        web_port = None if no_web else web
        place = Place(listen, port, reducer_port, advertise or own_address(), web_port)
        lead = Lead(standby=standby, lead_s=lead_s or config.sync.silent_s)
        service = _Service(opened, config, dataset, place, lead)
        asyncio.run(service.serve(uses=uses, valid_s=good_for_s))
        _have_the_model(directory)
    except asyncio.CancelledError:
        console.print("stopped by the operator; started again, it goes on")
    finally:
        opened.close()


def _have_the_model(directory: Path) -> None:
    next_steps(
        {
            f"atoll eval {directory}": "says how good the model is",
            f"atoll chat {directory}": "writes with it",
            f"atoll export {directory} OUT": "puts it into a folder for transformers",
        }
    )


def own_address() -> str:
    """Return this machine's address in its network, by asking which one it would use to go out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent; an address for documentation
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@dataclass(frozen=True, slots=True)
class Place:
    """Where the host and its built-in member listen, and what others call this machine."""

    listen: str
    port: int
    reducer_port: int
    advertise: str
    web_port: int | None  # None: no dashboard

    @property
    def local(self) -> str:
        """An address at which a process of this machine reaches the host."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listen, self.listen)


@dataclass(frozen=True, slots=True)
class Lead:
    """When this host leads, if its journal is shared."""

    standby: bool
    lead_s: float


class _Service:
    """The host and its built-in member, for as long as the run is served."""

    def __init__(
        self, opened: RunDirectory, config: RunConfig, dataset: Dataset, place: Place, lead: Lead
    ) -> None:
        self._opened = opened
        self._config = config
        self._dataset = dataset
        self._place = place
        self._events = opened.path / "events.jsonl"
        self._log = EventLog(self._events, show=Lines().show)
        self._board: Board | None = None
        self._host = Host(
            opened.journal,
            authority=opened.authority,
            transport=TcpTransport(opened.identity),
            identity=opened.identity,
            advertise=place.advertise,
            emit=self._emit,
        )
        self._leading: Leading = Alone(opened.journal)
        if opened.shared is not None:
            self._leading = Shared(
                opened.journal,
                opened.shared,
                lead_s=lead.lead_s,
                standby=lead.standby,
                emit=self._emit,
            )

    def _emit(self, event: Event) -> None:
        self._log.emit(event)
        if self._board is not None:
            self._board.hear(event)

    async def serve(self, *, uses: int, valid_s: float) -> None:
        """Serve until the run is complete."""
        if self._host.run.is_complete:
            console.print("the run is complete; whoever lacks its end can fetch it for a moment")
        system.allow_many_files()
        for note in self._opened.notes:
            self._emit(Warned(text=note))
        started = asyncio.Event()
        place = self._place
        try:
            async with (
                self._dashboard(),
                running(self._keep_built_in(started, uses=uses, valid_s=valid_s)),
            ):
                await self._host.serve(
                    host=place.listen, port=place.port, started=started, leading=self._leading
                )
        finally:
            self._log.close()

    @asynccontextmanager
    async def _dashboard(self) -> AsyncIterator[None]:
        """Show the run on the web while the block runs, unless nobody wants that."""
        place = self._place
        if place.web_port is None:
            yield
            return
        # Imported here: other commands do without a web server.
        from atoll.web.admin import Admin
        from atoll.web.board import Board
        from atoll.web.server import serving

        board = Board(
            self._opened.journal.entries,
            run=lambda: self._host.run,
            now=asyncio.get_running_loop().time,
        )
        board.replay(self._newest_events())
        self._board = board
        directory, serve = self._opened.path, asyncio.current_task()
        assert serve is not None, "it runs in a task"
        operator = HostOperator(self._host, stop=serve.cancel)
        async with serving(
            board,
            host=place.listen,
            port=place.web_port,
            on_failure=lambda text: self._emit(Warned(text=text)),
            admin=Admin(operator, token=operator_token(directory)),
        ) as port:
            url = f"http://{in_url(place.local)}:{port}/\n"
            write_private(directory / URL_FILE, url.encode())
            self._emit(DashboardServed(url=f"http://{in_url(place.advertise)}:{port}/"))
            yield

    def _newest_events(self) -> list[Stamped]:
        try:
            return newest_events(self._events, num_bytes=SEEN_BYTES)
        except msgspec.DecodeError as error:
            text = f"{self._events} is damaged ({error}): the dashboard begins without it"
            self._emit(Warned(text=text))
            return []

    def _print_invite(self, invite: str) -> None:
        write_private(self._opened.path / "invite.txt", invite.encode() + b"\n")
        console.print("to take part, on any machine that can reach this one:\n")
        console.say(f"    atoll join {invite}\n")

    async def _keep_built_in(self, started: asyncio.Event, *, uses: int, valid_s: float) -> None:
        """Run the built-in member in a process of its own, again whenever it ends."""
        await started.wait()
        self._print_invite(await self._host.make_invite(uses=uses, valid_s=valid_s))
        run_file = RunFile(
            config=self._config,
            host=self._place.local,
            port=self._host.port,
            host_id=self._opened.identity.peer_id,
            built_in=self._opened.built_in.peer_id,
        )
        write_run_file(self._opened.path / "built-in", run_file)
        told = None
        while True:
            process = await self._start_built_in()
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await _end(process)
                raise
            if code == 0:
                return
            log = self._opened.path / "built-in" / "built-in.log"
            error, hint = _last_words(log)
            text = f"the built-in member ended with code {code}{error}; starting it again"
            warning = Warned(text=f"{text} (its log: {log})", hint=hint)
            if warning != told:
                self._emit(warning)
            told = warning
            await asyncio.sleep(RESTART_S)

    async def _start_built_in(self) -> Process:
        directory, place = self._opened.path / "built-in", self._place
        with (directory / "built-in.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "atoll.cli.built_in"),
                *(str(directory), str(self._dataset.folder)),
                *(place.listen, str(place.reducer_port), place.advertise),
                stdin=PIPE,  # its end tells the child that we are gone
                stdout=log,
                stderr=log,
                **system.apart(),  # Ctrl-C is for the host
            )


def _last_words(log: Path) -> tuple[str, str]:
    """Return what a process wrote last about why it ended, and what helps; or nothing."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("error") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    return errors[-1] if errors else "", hints[-1] if hints else ""


async def _end(process: Process) -> None:
    """Ask the process to end, and see that it does."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(10.0):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
