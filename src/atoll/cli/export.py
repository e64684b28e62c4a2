"""`atoll export`: the newest model of a run as a folder that transformers, vLLM and others read."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.places import cache_directory
from atoll.cli.show import console


def export(
    run: Annotated[Path, typer.Argument(help="The directory of a run, or of a peer.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; new, or empty.")],
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised datasets are kept.", show_default=False)
    ] = None,
) -> None:
    """Write the newest committed model of a run as a Hugging Face folder."""
    from atoll.cli.newest import open_newest
    from atoll.cli.weights import export_weights

    newest = open_newest(run, cache=cache or cache_directory())
    export_weights(out, newest.config, newest.state.params_N, newest.dataset)
    console.print(f"state {newest.state.round} of {newest.config.name} is in {out}", markup=False)
    console.print(
        f'\nread it with transformers:    AutoModelForCausalLM.from_pretrained("{out}")',
        markup=False,
        soft_wrap=True,
    )
