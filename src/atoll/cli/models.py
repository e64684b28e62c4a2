"""The model that a command is to talk with: of a run that goes on elsewhere, or of this disk."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from atoll.cli.newest import home_of, open_newest
from atoll.cli.places import reader_directory
from atoll.cli.reader import reading
from atoll.cli.show import errors
from atoll.data.tokenizer import Tokenizer
from atoll.errors import ConfigError, DamagedError
from atoll.ids import RoundId
from atoll.model.flat import load_flat_
from atoll.model.hf import CONFIG_FILE
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.net.invite import Invite
from atoll.outer.saved import saved_rounds
from atoll.talk.source import ExportedFolder, Source, Speaker

INVITE_PREFIX: Final = "atoll1"
POLL_S: Final = 0.2  # between looks whether the first model is there


@dataclass(frozen=True, slots=True)
class Place:
    """What the user named, and where this machine keeps things."""

    named: str  # an invite, the directory of a run or of a member, or an exported folder
    directory: Path | None  # of the member that an invite makes us; None: one for each run
    cache: Path
    device: torch.device


class SavedStates:
    """The newest of the committed states in the directory of a run, or of a member."""

    def __init__(self, path: Path, *, cache: Path, device: torch.device) -> None:
        self._path = path
        self._home = home_of(path)
        self._cache = cache
        self._device = device
        self._round: RoundId | None = None
        self._model: Llama | None = None  # one, into which each newer state goes

    def newer(self) -> Speaker | None:
        """Return the model of the newest state, unless that is the one of the last time.

        Raises:
            ConfigError: no tokenizer is at hand.
            DamagedError: the state is not what was saved.
        """
        while True:
            rounds = saved_rounds(self._home / "states")
            if not rounds or rounds[-1] == self._round:
                return None
            try:
                return self._load()
            except DamagedError:
                # Whoever it belongs to removes old states, perhaps while we read one.
                if rounds[-1] in saved_rounds(self._home / "states"):
                    raise

    def _load(self) -> Speaker:
        newest = open_newest(self._path, cache=self._cache)
        if self._model is None:
            self._model = Llama(newest.config.model).to(self._device)
        model = self._model
        load_flat_(model, newest.state.params_N, layout_of(newest.config))
        self._round = newest.state.round
        return Speaker(
            newest.config.name,
            f"state {newest.state.round} of {newest.config.sync.rounds}",
            model,
            Tokenizer.load(newest.tokenizer),
            newest.config.data.sequence_length,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """Where models come from, the first of them, and how it goes with getting newer ones."""

    source: Source
    first: Speaker
    check: Callable[[], list[str]]  # what went wrong meanwhile; raises if no newer one can come


@contextmanager
def opened(place: Place) -> Iterator[Opened]:
    """Yield the model that was named, once there is one; a run is followed while the block runs.

    Raises:
        AtollError: there is none, or the run cannot be followed.
    """
    if place.named.startswith(INVITE_PREFIX):
        directory = place.directory or reader_directory(Invite.parse(place.named).authority)
        with reading(place.named, directory) as reader:
            source = SavedStates(directory, cache=place.cache, device=place.device)
            first = _wait_for_first(source, reader.check, run=reader.run_name)
            yield Opened(source, first, reader.check)
        return
    path = Path(place.named)
    if (path / CONFIG_FILE).exists():
        folder = ExportedFolder(path, device=place.device)
        first_exported = folder.newer()
        assert first_exported is not None, "there is one the first time"
        yield Opened(folder, first_exported, list)
        return
    saved = SavedStates(path, cache=place.cache, device=place.device)
    newest = saved.newer()
    if newest is None:
        raise ConfigError(f"no committed state in {path}", hint="wait for the first round")
    yield Opened(saved, newest, list)


def _wait_for_first(source: Source, check: Callable[[], list[str]], *, run: str) -> Speaker:
    with errors.status(f"downloading the newest model of {run}"):
        while True:
            for text in check():
                errors.say(text)
            if (speaker := source.newer()) is not None:
                return speaker
            time.sleep(POLL_S)
