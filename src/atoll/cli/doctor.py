"""`atoll doctor`: can this machine train, and in what?"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from msgspec.structs import replace
from rich.text import Text

from atoll.cli import examination as look
from atoll.cli.examination import Finding, Level
from atoll.cli.options import GpuMemoryOption, PeerDeviceOption
from atoll.cli.places import cache_directory, peer_directory
from atoll.cli.show import console
from atoll.config import PeerConfig, changed
from atoll.errors import AtollError
from atoll.ids import digest_of
from atoll.net.enrol import greet
from atoll.net.identity import Identity
from atoll.net.invite import Invite
from atoll.peer.home import read_run_file
from atoll.train.device import limit_memory
from atoll.train.fit import free_memory

MARKS: Final[dict[Level, tuple[str, str]]] = {
    "good": ("ok", "green"),
    "note": ("note", "yellow"),
    "bad": ("BAD", "bold red"),
}


def doctor(
    invite: Annotated[str, typer.Argument(help="Of a run, to try its host.")] = "",
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Of a peer, to look at its run and host.")
    ] = None,
    device: PeerDeviceOption = None,
    gpu_memory: GpuMemoryOption = None,
    json: Annotated[bool, typer.Option("--json", help="As one JSON array.")] = False,
) -> None:
    """Look at this machine, and say what it can train. Ends with 1 if something keeps it from it.

    It takes real inner steps for some seconds. No invite is used up, and nothing is written but how
    fast the device was: atoll plan goes by that.
    """
    peer = changed(PeerConfig(), {"device": device, "gpu_memory": gpu_memory})
    findings = []
    for finding in _findings(peer, invite, directory):
        findings.append(finding)
        if not json:
            console.print(_line(finding), soft_wrap=True)
    if json:
        console.print_json(msgspec.json.encode(findings).decode())
    is_well = all(finding.level != "bad" for finding in findings)
    if not json:
        console.print("\nthis machine can train" if is_well else "\nthis machine cannot train yet")
    raise typer.Exit(0 if is_well else 1)


def _line(finding: Finding) -> Text:
    mark, style = MARKS[finding.level]
    line = Text.assemble((f"{mark:<5}", style), f"{finding.what:<10}{finding.found}")
    if finding.advice:
        line.append(f"\n{'':15}{finding.advice}", style="dim" if finding.level == "good" else "")
    return line


def _findings(peer: PeerConfig, invite: str, directory: Path | None) -> Iterator[Finding]:
    """Yield what is found, one thing after the other, as soon as it is known."""
    run = None if directory is None else read_run_file(directory).config
    host = _host(invite, directory)
    home = directory or peer_directory(host.authority if host else "")
    peer = replace(peer, directory=str(home))
    yield look.of_versions()
    found, device = look.of_device(peer)
    yield found
    if device is not None:
        room_bytes = free_memory(device, limit_bytes=limit_memory(device, peer.gpu_memory))
        yield look.of_memory(room_bytes)
        runs = look.presets() if run is None else {run.name: run}
        fits = {n: look.fit_of(n, c, device, room_bytes=room_bytes or 0) for n, c in runs.items()}
        if room_bytes is not None:
            known = list(fits.values())
            yield look.of_presets(known) if run is None else look.of_run(known[0])
        name = look.preset_to_time(device, fits) if run is None else run.name
        if name is not None and fits[name].micro_batch:
            yield look.of_disk(peer, fits[name].disk_bytes)
            micro_batch, cache = fits[name].micro_batch, cache_directory()
            yield look.of_speed(runs[name], device, micro_batch=micro_batch, cache=cache)
    if host is not None:
        yield from _of_host(host)


def _host(invite: str, directory: Path | None) -> Invite | None:
    """Return how the host is to be found, and known; None: nobody has named one."""
    if invite:
        return Invite.parse(invite)
    if directory is None:
        return None
    run_file = read_run_file(directory)
    authority = digest_of(Identity.load(directory).authority)
    return Invite(host=run_file.host, port=run_file.port, authority=authority, token="")


def _of_host(host: Invite) -> Iterator[Finding]:
    try:
        greeting = asyncio.run(greet(host))
    except AtollError as error:
        yield look.of_no_host(error)
    else:
        yield from look.of_host(greeting)
