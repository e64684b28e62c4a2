"""`atoll chat`: write with the newest model of a run, and stay with it while it trains on."""

import sys
from collections.abc import Callable
from contextlib import suppress
from shutil import get_terminal_size
from typing import Annotated

import typer

from atoll.cli.options import CacheOption, DeviceOption, ModelArgument, ReaderDirectoryOption
from atoll.cli.places import cache_directory
from atoll.cli.show import console, write
from atoll.cli.wrapped import Wrapped


def chat(
    model: ModelArgument,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: always the likeliest token.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many; 0: all.")] = 50,
    length: Annotated[int, typer.Option(min=1, help="Tokens at most, each time.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same text.")] = 0,
    device: DeviceOption = "auto",
    directory: ReaderDirectoryOption = None,
    cache: CacheOption = None,
) -> None:
    """Let the newest committed model of a run go on from what you write, as the run goes on.

    With an invite this machine becomes a member that only reads: it downloads the model, and
    whatever is committed while the conversation lasts. It trains nothing, and needs no open port.
    """
    # Imported here: torch takes seconds, which is too long for a --help.
    from atoll.cli.conversation import Conversation, Settings
    from atoll.cli.models import Place, opened
    from atoll.train.device import pick_device

    place = Place(model, directory, cache or cache_directory(), pick_device(device))
    settings = Settings(temperature=temperature, top_k=top_k, length=length, seed=seed)
    with opened(place) as using:
        speaker = using.first
        _note(f"{', '.join(filter(None, (speaker.name, speaker.version)))}. It goes on from what")
        _note("you write; it was not taught to answer. /help says what else there is.\n")
        conversation = Conversation(using.source, speaker, settings, write=_write(), note=_note)
        while (line := _read_line()) is not None and conversation.hear(line):
            for news in using.check():
                _note(news)


def _read_line() -> str | None:
    """Return the next line that the user writes; None: there are no more."""
    if sys.stdin.isatty():
        with suppress(ImportError):  # not on Windows, whose terminal edits lines by itself
            import readline  # noqa: F401
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _write() -> Callable[[str], None]:
    """Return what writes the model's text: on a terminal, without broken words."""
    if not sys.stdout.isatty():
        return write
    return Wrapped(write, lambda: get_terminal_size().columns).write


def _note(text: str) -> None:
    console.say(text, style="dim")
