"""`atoll keys`: bring the keys of a run to the machine of a standby."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.places import run_directory
from atoll.cli.show import console
from atoll.errors import ConfigError
from atoll.host.keys import seal, unseal
from atoll.net.identity import write_private


def keys(
    run: Annotated[Path, typer.Argument(help="The run's directory; with --import, a new one.")],
    export: Annotated[
        Path | None, typer.Option("--export", help="Seal the keys into this file.")
    ] = None,
    sealed: Annotated[
        Path | None, typer.Option("--import", help="Unseal the keys from this file.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Read the passphrase there.", show_default="asks for it")
    ] = None,
) -> None:
    """Seal a run's keys and config with a passphrase, or unseal them for a standby host."""
    if (export is None) == (sealed is None):
        raise ConfigError(
            "neither --export nor --import, or both",
            hint="first: atoll keys RUN --export FILE; then, there: atoll keys NEW --import FILE",
        )
    if export is not None:
        directory = run_directory(run)
        write_private(export, seal(directory, _passphrase(passphrase_file, confirm=True)))
        console.say(f"sealed into {export}; then, on the other machine:\n")
        console.say(f"    atoll keys {run} --import {export.name}")
    elif sealed is not None:
        if not sealed.is_file():
            raise ConfigError(f"no such file: {sealed}", hint="copy it from the first machine")
        unseal(sealed.read_bytes(), _passphrase(passphrase_file, confirm=False), run)
        console.say(f"unsealed into {run}; then:\n")
        console.say(f"    atoll host {run} --standby")


def _passphrase(path: Path | None, *, confirm: bool) -> str:
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"no such file: {path}", hint="write the passphrase into it")
        try:
            return path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is no text in UTF-8", hint="name another file") from error
    try:
        prompted: str = typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm)
    except typer.Abort as error:
        raise ConfigError("no passphrase, so nothing was done", hint="--passphrase-file") from error
    return prompted
