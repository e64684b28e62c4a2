"""Whole runs in one call, and what came of them."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from atoll.events import Event
from atoll.net import records
from atoll.sim.fleet import Fleet
from atoll.sim.loop import run
from atoll.sim.setting import Setting

ENOUGH_S = 4_000.0


@dataclass
class Played:
    trace: list[tuple[float, str, Event]]
    bugs: list[dict[str, object]]
    journal: list[records.Record] = field(default_factory=list)


def play(setting: Setting, directory: Path) -> Played:
    """Return what came of a run without faults."""

    async def main() -> Played:
        fleet = Fleet(setting, directory)
        fleet.start()
        try:
            await fleet.ended()
            return Played(fleet.trace, fleet.loop.bugs, fleet.records())
        finally:
            fleet.close()

    played = run(main(), limit_s=ENOUGH_S, work_s=setting.work_times())
    assert not played.bugs, played.bugs
    return played


def trace_of(played: Played) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in played.trace)
