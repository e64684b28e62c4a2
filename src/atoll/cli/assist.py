"""`atoll assist`: give this machine's devices to a peer whose first machine is another one."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from atoll import system
from atoll.cli.given import check_gpu
from atoll.cli.options import (
    CacheOption,
    DevicesOption,
    GpuMemoryOption,
    NiceOption,
    PeerDeviceOption,
    ThreadsOption,
)
from atoll.cli.places import assist_directory, cache_directory
from atoll.cli.show import console
from atoll.config import PeerConfig, changed
from atoll.durable import disk_errors
from atoll.net.site import KEY_FILE, SiteKey


def assist(
    key: Annotated[
        str,
        typer.Argument(
            help="The line atollsite1... that the first machine printed, or, where both see the "
            "same files, the directory of its peer."
        ),
    ],
    device: PeerDeviceOption = None,
    devices: DevicesOption = None,
    threads: ThreadsOption = None,
    nice: NiceOption = None,
    gpu_memory: GpuMemoryOption = None,
    cache: CacheOption = None,
    name: Annotated[
        str | None, typer.Option(help="What it is called.", show_default="this machine's name")
    ] = None,
) -> None:
    """Train as one more machine of a peer, until Ctrl-C; the peer has to have --machines.

    The run sees one peer, which the first machine speaks for. No invite is needed here, and no
    connection but to that machine and the others of the site.
    """
    home = assist_directory()
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    given = {
        "device": device,
        "devices": devices,
        "threads": threads,
        "nice": nice,
        "gpu_memory": gpu_memory,
        "directory": str(home),
        "cache_directory": str(cache or cache_directory()),
    }
    peer = changed(PeerConfig(), given)
    check_gpu(peer)
    try:
        asyncio.run(_assist(key, peer, name=name or socket.gethostname()))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _assist(line: str, peer: PeerConfig, *, name: str) -> None:
    from atoll.train.assist import assist as give

    system.give_way(peer.nice)
    find = _finder(line)
    await give(find, peer, name=name, say=lambda text: console.print(text, markup=False))


def _finder(line: str) -> Callable[[], SiteKey | None]:
    """Return what finds the key that is meant: the line itself, or what the file has by now.

    Raises:
        ConfigError: it is none.
    """
    if "/" in line or Path(line).is_dir():
        return lambda: _in_file(Path(line) / KEY_FILE)
    key = SiteKey.parse(line)
    return lambda: key


def _in_file(path: Path) -> SiteKey | None:
    return SiteKey.parse(path.read_text(encoding="utf-8")) if path.is_file() else None
