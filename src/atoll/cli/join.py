"""`atoll join`: take part in a run with this machine."""

import asyncio
import socket
from pathlib import Path
from typing import Annotated, Literal

import typer

from atoll.cli.places import cache_directory, peer_directory
from atoll.cli.show import Lines, console
from atoll.config import PeerConfig, parse_canonical
from atoll.errors import ConfigError
from atoll.events import EventLog
from atoll.ids import digest_of
from atoll.net.enrol import enrol
from atoll.net.identity import Identity
from atoll.net.invite import Invite
from atoll.net.listener import Limits
from atoll.net.transport import TcpTransport
from atoll.peer.agent import Agent
from atoll.peer.home import Home, RunFile, read_run_file, write_run_file

MEGABIT = 1_000_000 // 8


def join(
    invite: Annotated[str, typer.Argument(help="The line atoll1... that the host printed.")] = "",
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where this peer lives; without an invite: which one goes on."),
    ] = None,
    name: Annotated[str, typer.Option(help="What others see; empty: this machine's name.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads for training; 0: torch decides.")] = 0,
    micro_batch: Annotated[
        int, typer.Option(help="Sequences at once on the device; 0: the whole batch.")
    ] = 0,
    port: Annotated[int, typer.Option(help="Port for other peers; 0: any free one.")] = 0,
    advertise: Annotated[
        str, typer.Option(help="Address for other peers; empty: as the host sees us.")
    ] = "",
    max_upload: Annotated[float, typer.Option(help="Mb/s at most; 0: no limit.")] = 0.0,
    max_download: Annotated[float, typer.Option(help="Mb/s at most; 0: no limit.")] = 0.0,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised datasets are kept.", show_default=False)
    ] = None,
) -> None:
    """Train in a run with this machine, until Ctrl-C. The same line again goes on where it was."""
    home = _directory(invite, directory)
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(f"--device {device}: not one of auto, cpu, cuda, mps")
    checked: Literal["auto", "cpu", "cuda", "mps"] = device  # type: ignore[assignment]
    peer = PeerConfig(
        directory=str(home),
        name=name or socket.gethostname(),
        device=checked,
        threads=threads,
        micro_batch=micro_batch,
        listen_port=port,
        advertise_host=advertise,
        max_upload_bytes_per_s=round(max_upload * MEGABIT),
        max_download_bytes_per_s=round(max_download * MEGABIT),
        cache_directory=str(cache or cache_directory()),
    )
    asyncio.run(_join(Invite.parse(invite) if invite else None, peer))


def _directory(invite: str, directory: Path | None) -> Path:
    if directory is not None:
        return directory
    if not invite:
        raise ConfigError("no invite, and no --dir", hint="paste the line that the host printed")
    return peer_directory(Invite.parse(invite).authority)


async def _join(invite: Invite | None, peer: PeerConfig) -> None:
    directory = Path(peer.directory)
    if invite is not None:
        await _enrol(invite, directory, name=peer.name)
    run_file = read_run_file(directory)
    console.print(f"run {run_file.config.name} at {run_file.host}:{run_file.port}", markup=False)
    home = Home(directory, keep_states=peer.keep_states)
    log = EventLog(directory / "events.jsonl", show=Lines().show)
    limits = Limits(
        upload_bytes_per_s=peer.max_upload_bytes_per_s,
        download_bytes_per_s=peer.max_download_bytes_per_s,
    )
    transport = TcpTransport(home.identity, limits)
    agent = Agent(home, peer, transport=transport, trains=True, emit=log.emit)
    try:
        await agent.run()
    finally:
        log.close()


async def _enrol(invite: Invite, directory: Path, *, name: str) -> None:
    """Become a member, or, if we are one, take over where the host is now."""
    if Identity.exists(directory) and (directory / "run.json").exists():
        if digest_of(Identity.load(directory).authority) != invite.authority:
            raise ConfigError(
                f"{directory} belongs to another run than the invite",
                hint="give this run a directory of its own with --dir",
            )
        known = read_run_file(directory)
        moved = RunFile(
            config=known.config,
            host=invite.host,
            port=invite.port,
            host_id=known.host_id,
            built_in=known.built_in,
        )
        write_run_file(directory, moved)
        return
    # The key is on disk before the host hears of it: with the same key, the same invite is good
    # again if we are killed in between.
    identity = Identity.load(directory) if Identity.exists(directory) else Identity.create()
    identity.save(directory)
    enrolled = await enrol(invite, identity, name)
    identity.save(directory)
    run_file = RunFile(
        config=parse_canonical(enrolled.run_config),
        host=invite.host,
        port=invite.port,
        host_id=enrolled.host,
        built_in=enrolled.built_in,
    )
    write_run_file(directory, run_file)
