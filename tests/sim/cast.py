"""Whole runs in one call, which must end well."""

from pathlib import Path

from atoll.sim.judge import Outcome
from atoll.sim.play import Case, play


def well(case: Case, directory: Path) -> Outcome:
    """Return what came of the case, with which nothing may be wrong."""
    outcome, wrong = play(case, directory)
    assert not wrong, "\n".join([*wrong, "play it again with:", str(case), case.to_json()])
    return outcome
