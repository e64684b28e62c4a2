"""`atoll resume`: let this machine's peers go on after `atoll pause`."""

from atoll.cli.owner import peers_here, set_paused
from atoll.cli.pause import DirectoryOption
from atoll.cli.show import console
from atoll.peer.home import read_run_file


def resume(directory: DirectoryOption = None) -> None:
    """Let the peers on this machine go on, with the work that they had when they were paused."""
    for home in peers_here(directory):
        set_paused(home, rests=False)
        console.print(f"{read_run_file(home).config.name} goes on", markup=False)
