"""`atoll join`: take part in a run with this machine."""

import asyncio
import socket
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from atoll.cli.enrolment import become_member
from atoll.cli.places import cache_directory, peer_directory
from atoll.cli.show import Lines, console
from atoll.config import PeerConfig, changed, load_peer_config
from atoll.errors import ConfigError
from atoll.events import EventLog
from atoll.net.invite import Invite
from atoll.net.listener import Limits
from atoll.net.transport import TcpTransport
from atoll.peer.agent import Agent
from atoll.peer.home import Home, read_run_file
from atoll.peer.trainer import StartTrainer
from atoll.train.launch import Trainer

MEGABIT = 1_000_000 // 8


def join(
    invite: Annotated[str, typer.Argument(help="The line atoll1... that the host printed.")] = "",
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where this peer lives; without an invite: which one goes on."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file with what this machine gives; options here come on top."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What others see.", show_default="this machine's name")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps.", show_default="auto")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="How many.", show_default="all GPUs")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads for training.", show_default="torch decides")
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Sequences at once on each device.", show_default="as many as fit"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port for other peers.", show_default="any free one")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(help="Address for other peers.", show_default="as the host sees us"),
    ] = None,
    max_upload: Annotated[
        float | None, typer.Option(help="Mb/s at most; 0: no limit.", show_default="no limit")
    ] = None,
    max_download: Annotated[
        float | None, typer.Option(help="Mb/s at most; 0: no limit.", show_default="no limit")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised datasets are kept.", show_default=False)
    ] = None,
) -> None:
    """Train in a run with this machine, until Ctrl-C. The same line again goes on where it was."""
    overrides = {
        "directory": None if directory is None else str(directory),
        "name": name,
        "device": device,
        "devices": devices,
        "precision": precision,
        "threads": threads,
        "micro_batch": micro_batch,
        "listen_port": port,
        "advertise_host": advertise,
        "max_upload_bytes_per_s": _bytes_per_s(max_upload),
        "max_download_bytes_per_s": _bytes_per_s(max_download),
        "cache_directory": None if cache is None else str(cache),
    }
    peer = changed(load_peer_config(config) if config else PeerConfig(), overrides)
    asyncio.run(take_part(invite, peer, start_trainer=Trainer.start))


def _bytes_per_s(megabits_per_s: float | None) -> int | None:
    return None if megabits_per_s is None else round(megabits_per_s * MEGABIT)


def _completed(peer: PeerConfig, invite: str) -> PeerConfig:
    """Return the config with this machine's values where nobody has said anything."""
    if not peer.directory and not invite:
        raise ConfigError("no invite, and no --dir", hint="paste the line that the host printed")
    return replace(
        peer,
        directory=peer.directory or str(peer_directory(Invite.parse(invite).authority)),
        name=peer.name or socket.gethostname(),
        cache_directory=peer.cache_directory or str(cache_directory()),
    )


async def take_part(invite: str, peer: PeerConfig, *, start_trainer: StartTrainer) -> None:
    """Become a member if we are none, and live an agent's life. Without an invite: as before.

    Raises:
        AtollError: the host turned us away, or this machine cannot go on.
    """
    peer = _completed(peer, invite)
    directory = Path(peer.directory)
    if invite:
        await become_member(Invite.parse(invite), directory, name=peer.name)
    run_file = read_run_file(directory)
    console.print(f"run {run_file.config.name} at {run_file.host}:{run_file.port}", markup=False)
    home = Home(directory, keep_states=peer.keep_states)
    log = EventLog(directory / "events.jsonl", show=Lines().show)
    limits = Limits(
        upload_bytes_per_s=peer.max_upload_bytes_per_s,
        download_bytes_per_s=peer.max_download_bytes_per_s,
        congestion=peer.congestion,
    )
    transport = TcpTransport(home.identity, limits)
    agent = Agent(home, peer, transport=transport, start_trainer=start_trainer, emit=log.emit)
    try:
        await agent.run()
    finally:
        log.close()
