"""Options and arguments that several commands have, with one meaning everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.errors import ConfigError

DAY_S = 86_400.0
CacheOption = Annotated[
    Path | None, typer.Option(help="Where tokenised datasets are kept.", show_default=False)
]
# An invite, wherever one is made.
UsesOption = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="How many machines may use the invite.")
]
DaysOption = Annotated[float, typer.Option(help="For how many days the invite is good.")]
MOST_DAYS = 3650.0


def valid_s(days: float) -> float:
    """Return for how many seconds an invite is good.

    Raises:
        ConfigError: that is never, or for ever.
    """
    if not 0 < days <= MOST_DAYS:
        raise ConfigError(
            f"--days {days:g}: an invite is good for more than 0 days and at most {MOST_DAYS:g}",
            hint="make another one later: atoll admin RUN invite",
        )
    return days * DAY_S


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]

# What a peer's TOML file may say as well: None, so that the file has its say.
PeerDeviceOption = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or mps.", show_default="auto")
]
DevicesOption = Annotated[int | None, typer.Option(help="How many.", show_default="all GPUs")]
GpuMemoryOption = Annotated[
    str | None,
    typer.Option(help="Of each GPU at most: 50%, 8GB.", show_default="all that is free"),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="CPU threads for training.", show_default="torch decides")
]
NiceOption = Annotated[
    int | None,
    typer.Option(help="0 to 19: how far other programs go first.", show_default="0"),
]

# A model to talk with, and where it is kept.
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="An invite, the directory of a run or of a peer, or a folder of atoll export."
    ),
]
ReaderDirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--dir", help="With an invite: where the model is kept.", show_default="one for each run"
    ),
]
