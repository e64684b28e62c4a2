"""The command line as a user has it, in this process."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from atoll.cli.main import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def atoll(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command line, and returns what a user would see."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["atoll", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Outcome(end.value.code or 0, captured.out, captured.err)

    return run


Atoll = Callable[..., Outcome]
