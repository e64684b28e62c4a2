"""`atoll train`: the same training on one machine, without a network."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.options import CacheOption, DeviceOption
from atoll.cli.places import cache_directory, run_directory
from atoll.cli.show import progress
from atoll.config import load_run_config
from atoll.data.prepare import prepare
from atoll.exchange.initial import initial_params, require_initial


def train(
    run: Annotated[Path, typer.Argument(help="The TOML file of a run, or its directory.")],
    steps: Annotated[int, typer.Option(min=0, help="0: as many as each peer does.")] = 0,
    batch_factor: Annotated[
        int, typer.Option(min=1, help="Batches so many times as large: as of so many peers.")
    ] = 1,
    device: DeviceOption = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch decides.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the model to this folder, as `atoll export` does.")
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Train alone, with plain AdamW on the run's first samples: what a run is compared with."""
    is_file = run.is_file() or run.suffix == ".toml"
    toml = run if is_file else run_directory(run) / "run.toml"
    config = load_run_config(toml)
    dataset = prepare(
        config,
        base_directory=toml.parent,
        directory=cache or cache_directory(),
        on_progress=progress("preparing the text", of="documents"),
    )
    from atoll.cli.alone import train_and_report  # torch takes seconds: too long for a --help
    from atoll.train.baseline import initial_model
    from atoll.train.device import pick_device, prepare_process

    where = pick_device(device)
    prepare_process(where, num_threads=threads)
    require_initial(config, toml.parent)
    params_N = initial_params(config, toml.parent)
    train_and_report(
        config,
        dataset,
        model=initial_model(config, device=where, params_N=params_N),
        num_steps=steps or config.total_steps,
        batch_factor=batch_factor,
        out=out,
    )
