"""`atoll demo`: a host and its peers on this machine, as they would be over the internet.

    prepare the text -> atoll host -> atoll join, once for each peer -> watch -> what came out

All are processes of their own, started as a user would start them, joined by an invite and TLS.
"""

import shlex
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from time import sleep
from typing import Annotated, Final

import typer

from atoll.cli.chaos import MIN_PEERS, MIN_ROUNDS, Chaos
from atoll.cli.demo_config import ROUNDS, demo_config
from atoll.cli.live import shown
from atoll.cli.options import CacheOption
from atoll.cli.places import cache_directory
from atoll.cli.processes import LEAVE_S, POLL_S, Process, end, wait_for_end
from atoll.cli.show import console, progress
from atoll.cli.story import Actor, Story
from atoll.clock import monotonic_s, wall_s
from atoll.config import RunConfig, template
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset
from atoll.durable import disk_errors
from atoll.errors import ConfigError, RunError
from atoll.events import GrowingLog
from atoll.model.shapes import num_parameters
from atoll.outer.saved import saved_rounds
from atoll.train.shared import vectors_path
from atoll.units import format_bytes, format_count, format_seconds

NAMES: Final = ("ada", "ben", "carol", "dan", "eve", "finn", "gina", "hugo", "iris", "jack")
BUILT_IN: Final = "built-in"
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a demo takes place, and who takes part. `directory` becomes that of the run."""

    directory: Path
    cache: Path
    names: tuple[str, ...]
    port: int
    threads: int = 1
    chaos: bool = False
    is_kept: bool = True

    @property
    def homes(self) -> dict[str, Path]:
        """The directory of each member, the built-in one last."""
        homes = {name: self.directory / "peers" / name for name in self.names}
        return homes | {BUILT_IN: self.directory / BUILT_IN}

    def host_arguments(self) -> list[str]:
        arguments = ["host", str(self.directory), "--port", str(self.port), "--reducer-port", "0"]
        arguments += ["--web", "0"]
        return [*arguments, "--listen", LOOPBACK, "--advertise", LOOPBACK, *self.cache_option()]

    def join_arguments(self, name: str, *, invite: str = "") -> list[str]:
        """Return the command of a peer; without an invite, one that was in before."""
        arguments = ["join", *([invite] if invite else []), "--dir", str(self.homes[name])]
        return [*arguments, "--name", name, "--threads", str(self.threads), *self.cache_option()]

    def cache_option(self) -> list[str]:
        """Return what a command needs to find the dataset."""
        return [] if self.cache == cache_directory() else ["--cache", str(self.cache)]


def demo(
    peers: Annotated[int, typer.Option(min=1, max=len(NAMES), help="How many train.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Outer steps of the run.")] = ROUNDS,
    keep: Annotated[
        Path | None, typer.Option(help="A new folder to keep the run in.", show_default=False)
    ] = None,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Kill a trainer and a peer on the way.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for each peer.")] = 1,
    cache: CacheOption = None,
) -> None:
    """Train a small model with a host and some peers, all of them on this machine."""
    if chaos and (peers < MIN_PEERS or rounds < MIN_ROUNDS):
        raise ConfigError(f"--chaos needs {MIN_PEERS} peers and {MIN_ROUNDS} rounds at least")
    if keep is not None and keep.exists() and not (keep.is_dir() and not any(keep.iterdir())):
        raise ConfigError(
            f"--keep {keep}: there is something already",
            hint=f"name a new folder; a demo that was kept goes on with: atoll host {keep}",
        )
    stage = Stage(
        directory=keep or Path(mkdtemp(prefix="atoll-demo-")),
        cache=cache or cache_directory(),
        names=NAMES[:peers],
        port=free_port(),
        threads=threads,
        chaos=chaos,
        is_kept=keep is not None,
    )
    perform(demo_config(peers=peers, rounds=rounds), stage)


def perform(config: RunConfig, stage: Stage) -> None:
    """Let the run take place, and print what came out.

    On Ctrl-C it ends early, and says how the run goes on. What is not to be kept is removed, unless
    something failed.

    Raises:
        ConfigError: there is no text to train on.
        RunError: a process failed, or the members do not hold one state.
    """
    began_at = monotonic_s()
    try:
        dataset = _prepare(config, stage)
        story = _run(config, stage)
        _print_outcome(config, stage, story, dataset)
        exchanged = format_bytes(story.num_sent + story.num_received)
        took = format_seconds(monotonic_s() - began_at)
        console.print(f"\n{exchanged} exchanged, {took} in all\n")
        _print_next(stage)
    except KeyboardInterrupt:
        _print_way_on(config, stage)
    except ConfigError:
        _remove(config, stage)
        raise
    if not stage.is_kept:
        _remove(config, stage)


def _prepare(config: RunConfig, stage: Stage) -> Dataset:
    """Return the dataset, made now if it is the first time, after writing the run.toml."""
    text = Path(config.data.sources[0].name).name
    console.print(f"preparing the text: {text}, and a tokenizer trained on it", markup=False)
    dataset = prepare(
        config,
        base_directory=stage.directory,
        directory=stage.cache,
        on_progress=progress("preparing the text", of="documents"),
    )
    tokens = sum(dataset.num_samples) * dataset.sequence_length
    console.print(
        f"{format_count(tokens)} tokens to train on, "
        f"{dataset.num_validation_samples} samples that nobody trains on\n"
    )
    path = stage.directory / "run.toml"
    with disk_errors(path):
        stage.directory.mkdir(parents=True, exist_ok=True)
        path.write_text(template(config), encoding="utf-8")
    return dataset


# --- the run -------------------------------------------------------------------------------------


def _run(config: RunConfig, stage: Stage) -> Story:
    """Return the story of the run, once it is over and every process has ended.

    Raises:
        RunError: it did not end as it should have.
    """
    actors = {name: Actor(name, trains=name != BUILT_IN) for name in stage.homes}
    story = Story(config, actors, began_at=wall_s())
    host = Process("the host", stage.host_arguments(), directory=stage.directory)
    peers: list[Process] = []
    try:
        with shown(story, console) as show:
            listen = _listener(story, stage, show)
            host.start()
            invite = _invite(host, stage, listen)
            for name in stage.names if invite else ():
                arguments = stage.join_arguments(name, invite=invite)
                peers.append(Process(name, arguments, directory=stage.homes[name]))
                peers[-1].start()
            _watch(host, peers, chaos=_chaos(stage, story, peers), listen=listen)
            wait_for_end([host, *peers], seconds=LEAVE_S if story.is_complete else 0.0)
            listen()
        _require_good_end([host, *peers], story, stage)
    finally:
        end([host, *peers])
    return story


def _listener(story: Story, stage: Stage, show: Callable[[], None]) -> Callable[[], None]:
    """Return what hears all that has been reported since the last time, and shows it."""
    host = GrowingLog(stage.directory / "events.jsonl")
    members = {name: GrowingLog(home / "events.jsonl") for name, home in stage.homes.items()}

    def listen() -> None:
        for line in host.read():
            story.hear_host(line)
        for name, log in members.items():
            for line in log.read():
                story.hear_peer(name, line)
        show()

    return listen


def _invite(host: Process, stage: Stage, listen: Callable[[], None]) -> str:
    """Return the invite that the host prints; nothing, if it does not come up."""
    path = stage.directory / "invite.txt"
    while host.is_running and not path.exists():
        listen()
        sleep(POLL_S)
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _chaos(stage: Stage, story: Story, peers: list[Process]) -> Chaos | None:
    if not stage.chaos or len(peers) < MIN_PEERS:
        return None
    return Chaos(story, peer=peers[1], other=peers[-1] if len(peers) > MIN_PEERS else peers[0])


def _watch(
    host: Process, peers: list[Process], *, chaos: Chaos | None, listen: Callable[[], None]
) -> None:
    """Return when the host has ended, or everybody else."""
    while host.is_running and any(peer.is_running for peer in peers):
        listen()
        if chaos is not None:
            chaos.act()
        sleep(POLL_S)


def _require_good_end(processes: list[Process], story: Story, stage: Stage) -> None:
    problems = []
    for process in processes:
        if process.is_running and story.is_complete:
            problems.append(f"{process.name} did not end with the run; its log: {process.log}")
        elif process.exit_code:
            code, words = process.exit_code, process.last_words
            problems.append(f"{process.name} failed with exit code {code}: {words}")
            problems.append(f"its log: {process.log}")
    if not story.is_complete:
        rounds = story.config.sync.rounds
        problems.append(f"the run ended after {story.committed} of {rounds} rounds")
    _require_none(problems, stage)


def _require_none(problems: list[str], stage: Stage) -> None:
    for problem in problems:
        console.say(problem, style="bold red")
    if problems:
        raise RunError("the demo failed", hint=f"all files are kept: {stage.directory}")


# --- afterwards ----------------------------------------------------------------------------------


def _print_outcome(config: RunConfig, stage: Stage, story: Story, dataset: Dataset) -> None:
    """Print what is on the members' disks, compared, and what the model has learnt.

    Raises:
        RunError: the members do not hold one state.
    """
    # Imported here: torch takes seconds, and until now the CPU was for the peers.
    from atoll.cli import outcome
    from atoll.train.device import set_threads

    comparison = outcome.compare(stage.directory, stage.homes, config)
    console.print()
    console.print(outcome.states_table(comparison, story.actors))
    _require_none(comparison.problems, stage)
    console.print("equal on all disks, and as the journal says\n", style="green")
    set_threads(stage.threads)
    with console.status("measuring what the model has learnt"):
        before = outcome.initial_quality(config, dataset)
        after = outcome.quality(comparison.held[BUILT_IN][0].params_N, config, dataset)
    console.print("validation loss in nats per token, and a text, before and after:", style="dim")
    console.print(outcome.quality_table(before, after))


def _print_next(stage: Stage) -> None:
    directory = stage.directory if stage.is_kept else Path("DIR")
    console.print(
        "try next:" if stage.is_kept else "with `atoll demo --keep DIR` you can then try:"
    )
    cache = stage.cache_option()
    _print_command(["generate", str(directory), "My fellow citizens", *cache])
    _print_command(["verify", str(directory)])
    _print_command(["export", str(directory), "out", *cache])


def _print_way_on(config: RunConfig, stage: Stage) -> None:
    console.print("\nstopped: everything that the demo started has ended")
    joined = [name for name in stage.names if (stage.homes[name] / "run.json").exists()]
    if config.sync.rounds in saved_rounds(stage.homes[BUILT_IN] / "states"):
        _print_next(stage)
    elif stage.is_kept and joined:
        console.print("the run goes on with these, each in a terminal of its own:")
        _print_command(stage.host_arguments())
        for name in joined:
            _print_command(stage.join_arguments(name))


def _print_command(arguments: list[str]) -> None:
    console.say(f"    {_program()} {shlex.join(arguments)}")


def _program() -> str:
    """Return how the user calls atoll on this machine."""
    if shutil.which("atoll"):
        return "atoll"
    called = Path(sys.argv[0])
    return sys.argv[0] if called.name == "atoll" else f"{sys.executable} -m atoll.cli.main"


def _remove(config: RunConfig, stage: Stage) -> None:
    """Leave nothing behind, also of a peer that was killed and did not come back."""
    for home in stage.homes.values():
        vectors_path(home, num_parameters(config.model)).unlink(missing_ok=True)
    shutil.rmtree(stage.directory, ignore_errors=True)


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
