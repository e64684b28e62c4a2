"""One simulated run: a setting, a script of faults, and the judgement of what came of them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from atoll.sim.faults import Script
from atoll.sim.fleet import Fleet
from atoll.sim.inflict import Mischief
from atoll.sim.judge import Outcome, judge
from atoll.sim.loop import Deadlock, run
from atoll.sim.setting import Setting, shown

LATECOMERS_S = 300.0  # for members to end once the host has
ENOUGH_S = 4_000.0  # of virtual time: whoever still waits then, waits for ever


class Case(Struct, frozen=True, kw_only=True):
    """What can be played again: the same case is the same run."""

    setting: Setting
    script: Script = ()

    def __str__(self) -> str:
        return f"Case(\n    setting={shown(self.setting)},\n    script={shown(self.script)},\n)"

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()


def play(
    case: Case, directory: Path, *, look: Callable[[Fleet], None] = lambda _: None
) -> tuple[Outcome, list[str]]:
    """Return what came of the run, and what is wrong with that.

    `look` may arrange more, before anything begins. `directory` is there, and empty.
    """
    outcome: Outcome | None = None

    async def main() -> list[str]:
        nonlocal outcome
        fleet = Fleet(case.setting, directory)
        mischief = Mischief(fleet, case.script)
        outcome = Outcome(fleet, mischief.happened)
        look(fleet)
        fleet.start()
        try:
            await fleet.until(lambda: fleet.is_complete)
            with suppress(TimeoutError):
                async with asyncio.timeout(LATECOMERS_S):
                    await fleet.ended()
            outcome.over_at = mischief.over_at
            outcome.records = fleet.records()
            wrong = judge(outcome)
            if (late := fleet.still_running()) and not outcome.may_have_missed_the_end:
                wrong.append(f"{late} are blocked for ever\n{fleet.loop.who_waits()}")
            return wrong
        finally:
            fleet.close()

    try:
        wrong = run(main(), limit_s=ENOUGH_S, work_s=case.setting.work_times())
    except Deadlock as error:
        assert outcome is not None
        return outcome, [f"somebody is blocked for ever: {error}"]
    assert outcome is not None
    return outcome, wrong


def events_of(outcome: Outcome) -> bytes:
    """Return all that was reported, a line of JSON for each."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in outcome.trace)
