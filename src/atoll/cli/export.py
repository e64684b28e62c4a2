"""`atoll export`: the newest model of a run, for transformers, vLLM, llama.cpp and others."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.options import CacheOption
from atoll.cli.places import cache_directory
from atoll.cli.show import console


def export(
    run: Annotated[Path, typer.Argument(help="The directory of a run, or of a peer.")],
    out: Annotated[
        Path, typer.Argument(help="The folder to write, new or empty; or a file NAME.gguf.")
    ],
    cache: CacheOption = None,
) -> None:
    """Write the newest committed model of a run as a Hugging Face folder, or as a GGUF file."""
    from atoll.cli.newest import open_newest, origin_of
    from atoll.cli.weights import GGUF_SUFFIX, Exported, export_weights

    newest = open_newest(run, cache=cache or cache_directory())
    config, state = newest.config, newest.state
    export_weights(out, Exported(config, state.params_N, newest.tokenizer, origin_of(newest, run)))
    console.print(f"state {state.round} of {config.name} is in {out}", markup=False)
    if out.suffix != GGUF_SUFFIX:
        console.say(
            f'\nread it with transformers:    AutoModelForCausalLM.from_pretrained("{out}")'
        )
