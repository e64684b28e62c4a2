"""`atoll join`: take part in a run with this machine."""

import asyncio
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from atoll import system
from atoll.cli.options import (
    CacheOption,
    DevicesOption,
    GpuMemoryOption,
    NiceOption,
    PeerDeviceOption,
    ThreadsOption,
)
from atoll.cli.show import console
from atoll.config import PeerConfig, changed, load_peer_config
from atoll.errors import ConfigError

MEGABIT = 1_000_000 // 8

DirectoryOption = Annotated[
    Path | None,
    typer.Option("--dir", help="Where this peer lives; without an invite: which one goes on."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="A TOML file with what this machine gives; options here come on top."),
]
NameOption = Annotated[
    str | None, typer.Option(help="What others see.", show_default="this machine's name")
]
PlaceOption = Annotated[
    str | None,
    typer.Option(help='For all to read, and on the map: "Lisbon, PT".', show_default="unsaid"),
]
MachinesOption = Annotated[
    int | None,
    typer.Option(help="That are one peer, this one first; the others assist.", show_default="1"),
]
SiteOption = Annotated[
    str | None,
    typer.Option(help="Where they reach this one: 10.0.0.1:7779.", show_default=False),
]
HoursOption = Annotated[
    str | None,
    typer.Option(help="Train in these hours only: 22-7, 8:30-17.", show_default="always"),
]
MicroBatchOption = Annotated[
    int | None,
    typer.Option(help="Sequences at once on each device.", show_default="as many as fit"),
]
PortOption = Annotated[
    int | None, typer.Option(help="Port for other peers.", show_default="any free one")
]
AdvertiseOption = Annotated[
    str | None,
    typer.Option(help="Address for other peers.", show_default="as the host sees us"),
]
MaxUploadOption = Annotated[
    float | None, typer.Option(help="Mb/s at most; 0: no limit.", show_default="no limit")
]
MaxDownloadOption = Annotated[
    float | None, typer.Option(help="Mb/s at most; 0: no limit.", show_default="no limit")
]
InstallOption = Annotated[
    bool, typer.Option("--install", help="Write a service file that does this, and say how.")
]
UninstallOption = Annotated[bool, typer.Option("--uninstall", help="Remove that service file.")]


def join(
    invite: Annotated[str, typer.Argument(help="The line atoll1... that the host printed.")] = "",
    directory: DirectoryOption = None,
    config: ConfigOption = None,
    name: NameOption = None,
    place: PlaceOption = None,
    device: PeerDeviceOption = None,
    devices: DevicesOption = None,
    machines: MachinesOption = None,
    site: SiteOption = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp8.")] = None,
    threads: ThreadsOption = None,
    nice: NiceOption = None,
    gpu_memory: GpuMemoryOption = None,
    hours: HoursOption = None,
    micro_batch: MicroBatchOption = None,
    port: PortOption = None,
    advertise: AdvertiseOption = None,
    max_upload: MaxUploadOption = None,
    max_download: MaxDownloadOption = None,
    cache: CacheOption = None,
    install: InstallOption = False,
    uninstall: UninstallOption = False,
) -> None:
    """Train in a run with this machine. The same line again goes on where it was.

    Ctrl-C leaves after the round, so that what was begun counts; a second one leaves at once.
    """
    overrides = {
        "directory": None if directory is None else str(directory),
        "name": name,
        "place": place,
        "device": device,
        "devices": devices,
        "machines": machines,
        "site": site,
        "precision": precision,
        "threads": threads,
        "nice": nice,
        "gpu_memory": gpu_memory,
        "hours": hours,
        "micro_batch": micro_batch,
        "listen_port": port,
        "advertise_host": advertise,
        "max_upload_bytes_per_s": _bytes_per_s(max_upload),
        "max_download_bytes_per_s": _bytes_per_s(max_download),
        "cache_directory": None if cache is None else str(cache),
    }
    peer = changed(load_peer_config(config) if config else PeerConfig(), overrides)
    if install or uninstall:
        from atoll.cli.life import keep_as_service

        keep_as_service(invite, peer, wanted=install)
    else:
        _train(invite, peer)


def _train(invite: str, peer: PeerConfig) -> None:
    console.print("starting: this takes some seconds")  # most of them for what follows
    from atoll.cli.given import check
    from atoll.cli.life import take_part
    from atoll.train.launch import Trainer

    check(peer)
    try:
        asyncio.run(take_part(invite, peer, start_trainer=Trainer.start, obeys_keys=True))
    except asyncio.CancelledError:  # its owner did not want to wait
        raise KeyboardInterrupt from None
    finally:
        system.end_in_peace()  # its owner's wishes were for the event loop, which is closed


def _bytes_per_s(megabits_per_s: float | None) -> int | None:
    if megabits_per_s is None:
        return None
    if not 0 <= megabits_per_s < inf:
        raise ConfigError(f"{megabits_per_s:g} Mb/s is no limit", hint="a number; 0: no limit")
    bytes_per_s = round(megabits_per_s * MEGABIT)
    if megabits_per_s and not bytes_per_s:  # which would be no limit
        raise ConfigError(
            f"{megabits_per_s:g} Mb/s is less than a byte per second", hint="0: no limit"
        )
    return bytes_per_s
