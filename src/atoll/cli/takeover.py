"""`atoll takeover`: let a standby lead now, or fence off an older copy of a run's directory."""

from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout

from atoll.cli.places import run_directory
from atoll.cli.show import console
from atoll.config import load_run_config, run_digest
from atoll.errors import ConfigError, RunError
from atoll.host.journal import Journal, led_in
from atoll.host.lead import lead_by_file
from atoll.host.store import SharedStore, Word
from atoll.host.stores import JOURNAL_FILE, journal_url, open_file, open_shared
from atoll.net.authority import Authority


def takeover(
    run: Annotated[Path, typer.Argument(help="The run's directory, or its run.toml.")],
    to: Annotated[
        str, typer.Option(help="HOST:PORT of the standby.", show_default="the only one")
    ] = "",
    above: Annotated[
        int, typer.Option(min=0, help="Lead above this epoch, which a host that stopped has named.")
    ] = 0,
) -> None:
    """Let a standby lead now; whoever leads is deposed. For a journal in a file: the next start."""
    directory = run_directory(run)
    if url := journal_url(directory):
        if above:
            raise ConfigError(
                "--above is for a journal in a file", hint="a shared journal knows its own epoch"
            )
        store = open_shared(url, run=run_digest(load_run_config(directory / "run.toml")))
        try:
            _call(store, to)
        finally:
            store.close()
    else:
        epoch = _raise_epoch(directory, above=above)
        console.say(f"the host of {directory} will lead in epoch {epoch}:\n")
        console.say(f"    atoll host {directory}")


def _call(store: SharedStore, to: str) -> None:
    standbys = store.standbys()
    if not to and len(standbys) > 1:
        raise ConfigError(
            f"{len(standbys)} hosts stand by: {', '.join(standbys)}", hint="name one with --to"
        )
    to = to or next(iter(standbys), "")
    if not store.tell(to, Word.LEAD):
        raise RunError(
            f"no host stands by at {to}" if to else "no host stands by",
            hint="start one on another machine: atoll host RUN --standby",
        )
    console.print(f"{to} is told to take over", markup=False)


def _raise_epoch(directory: Path, *, above: int) -> int:
    lock = FileLock(directory / "host.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"a host process serves {directory}", hint="it leads already; else stop it first"
        ) from None
    try:
        if not (directory / JOURNAL_FILE).exists():
            raise ConfigError(
                f"the run in {directory} has not begun", hint=f"begin it: atoll host {directory}"
            )
        journal = Journal(open_file(directory), sign=Authority.load(directory).sign)
        try:
            address = led_in(journal.led).address if journal.led else ""
            lead_by_file(journal, address, above=above)
            return journal.epoch
        finally:
            journal.close()
    finally:
        lock.release()
