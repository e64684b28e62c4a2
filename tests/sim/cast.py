"""Whole runs in one call, which must end well."""

from collections.abc import Callable
from pathlib import Path

from atoll.sim.fleet import Fleet
from atoll.sim.judge import Outcome
from atoll.sim.play import Case, play


def well(case: Case, directory: Path, *, look: Callable[[Fleet], None] = lambda _: None) -> Outcome:
    """Return what came of the case, with which nothing may be wrong; `look`: as `play` has it."""
    outcome, wrong = play(case, directory, look=look)
    assert not wrong, "\n".join([*wrong, "play it again with:", str(case), case.to_json()])
    return outcome
