"""`atoll pause`: let this machine's peers rest."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.owner import is_running, peers_here, set_paused
from atoll.cli.show import console
from atoll.peer.home import read_run_file

DirectoryOption = Annotated[
    Path | None, typer.Option("--dir", help="Of one peer.", show_default="all that run here")
]


def pause(directory: DirectoryOption = None) -> None:
    """Let the peers on this machine take no inner steps until `atoll resume`.

    Each ends the step that is under way, keeps its work, and follows the run. Its memory stays
    taken: to free that, end it with Ctrl-C.
    """
    then = "atoll resume" if directory is None else f"atoll resume --dir {directory}"
    for home in peers_here(directory):
        set_paused(home, rests=True)
        name = read_run_file(home).config.name
        later = "" if is_running(home) else ", as soon as it is started"
        console.say(f"{name} rests{later}; go on with: {then}")
