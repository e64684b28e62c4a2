"""`atoll follow`: what a host or a peer reports, as it happens: in words, or as curves."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from atoll.cli.measures import Measures
from atoll.cli.places import directory_of
from atoll.cli.show import Lines, console
from atoll.cli.sinks import SINKS
from atoll.errors import ConfigError, DamagedError
from atoll.events import Connected, GrowingLog, HostStarted, Stamped, Stopped, Training

POLL_S = 0.5


def follow(
    run: Annotated[Path, typer.Argument(help="The directory of a run, or of a peer.")],
    to: Annotated[
        str, typer.Option(help=f"Curves to: {', '.join(SINKS)}.", show_default="words, here")
    ] = "",
    place: Annotated[
        str,
        typer.Option(
            "--place", help="A folder for tensorboard; for the others the name of a project."
        ),
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Only what is there by now.")] = False,
) -> None:
    """Tell what happens in a run from its first event on, until it is complete, or Ctrl-C.

    Each start tells it from the beginning: a second one to the same place is a second curve.
    """
    directory = directory_of(run)
    path = directory / "events.jsonl"
    if not path.exists():
        raise ConfigError(
            f"nothing has happened in {directory}: it has no events.jsonl",
            hint="name the directory of a run that was served, or of a peer",
        )
    if to and to not in SINKS:
        raise ConfigError(f"no such place for curves: {to}", hint=f"choose: {', '.join(SINKS)}")
    if not to:
        _tell(_events(path, once=once))
        return
    sink, measures = SINKS[to](place, directory.resolve().name), Measures()
    try:
        for stamped in _events(path, once=once):
            if (point := measures.point(stamped)) is not None:
                sink.put(point)
    finally:
        sink.close()


def _tell(happened: Iterable[Stamped]) -> None:
    lines = Lines()
    for stamped in happened:
        # How far each peer is, several times a minute, is for pictures.
        if not isinstance(stamped.event, Training) and (line := lines.line(stamped.event)):
            at = time.strftime("%d %b %H:%M:%S", time.localtime(stamped.at))
            console.say(f"{at}  {line}")


def _events(path: Path, *, once: bool) -> Iterator[Stamped]:
    """Yield the events of a log; if not `once`, as they come, until the run is complete."""
    log, is_over = GrowingLog(path), False
    while True:
        try:
            news = log.read()
        except msgspec.DecodeError as error:
            raise DamagedError(f"{path} is damaged: {error}", hint="delete that file") from error
        for stamped in news:
            # Members leave after the end, and whoever is started again after it goes on.
            if isinstance(stamped.event, Stopped | HostStarted | Connected):
                is_over = isinstance(stamped.event, Stopped)
            yield stamped
        if once or is_over:
            return
        time.sleep(POLL_S)
