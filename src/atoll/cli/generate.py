"""`atoll generate`: let the newest model of a run write."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.options import CacheOption, DeviceOption
from atoll.cli.places import cache_directory
from atoll.cli.show import write


def generate(
    run: Annotated[Path, typer.Argument(help="The directory of a run, or of a peer.")],
    prompt: Annotated[str, typer.Argument(help="How the text begins.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="How many to write at most.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: always the likeliest token.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many; 0: all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same text.")] = 0,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Let the newest committed model of a run go on from a prompt."""
    # Imported here: torch takes seconds, which is too long for a --help.
    from atoll.cli.newest import open_newest
    from atoll.data.tokenizer import StreamDecoder, Tokenizer
    from atoll.model.flat import load_flat_
    from atoll.model.generate import Sampling, generate as generated
    from atoll.model.layout import layout_of
    from atoll.model.llama import Llama
    from atoll.train.device import pick_device

    chosen = pick_device(device)
    newest = open_newest(run, cache=cache or cache_directory())
    model = Llama(newest.config.model).to(chosen)
    load_flat_(model, newest.state.params_N, layout_of(newest.config))
    tokenizer = Tokenizer.load(newest.tokenizer)
    decoder = StreamDecoder(tokenizer)
    write(prompt)
    for token in generated(
        model,
        [tokenizer.start_token, *tokenizer.encode(prompt)],
        max_new_tokens=tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, seed=seed),
        stop_token=tokenizer.start_token,
    ):
        write(decoder.push(token))
    write(decoder.finish() + "\n")
