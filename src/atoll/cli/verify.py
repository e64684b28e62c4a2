"""`atoll verify`: prove that a run is what its journal says."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.places import run_directory
from atoll.cli.show import console
from atoll.host.audit import Proved, audit


def verify(
    run: Annotated[Path, typer.Argument(help="The run's directory, or its run.toml.")],
) -> None:
    """Prove that a run is what its journal says: entries, leases, shares, states at hand."""
    num_open = 0
    for finding in audit(run_directory(run)):
        proved = isinstance(finding, Proved)
        num_open += not proved
        mark = "[green]proved[/]" if proved else "[yellow]open  [/]"
        console.print(f"{mark}  {finding.text}", soft_wrap=True)
    console.print("nothing is wrong" + (", but not all could be proved" if num_open else ""))
