"""What a journal that is far away costs the host: how late its event loop is meanwhile.

    benchmarks/far_journal.py --append-s 0.05 --append-s 0.5

A host's deeds on a real loop, and a store whose every write takes so long: for some seconds, ten
records and a hundred messages per second, as decisions ask for them. Prints a line of
JSON for each duration and way: `near`, as if the store were at hand (what waits for it is the whole
loop), and `far` (in a thread). `late_*`: of a task that wants to run every 5 ms; `writes`: how many
went to the store; `message_p50_s`: how long a message waited for the records before it.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from functools import partial
from statistics import median, quantiles

from atoll.host.deeds import Deeds
from atoll.host.journal import Journal
from atoll.ids import PeerId, RoundId
from atoll.net.identity import Identity
from atoll.net.records import Entry, Planned

SECONDS = 5.0
RECORDS_PER_S = 10
MESSAGES_PER_RECORD = 10
TICK_S = 0.005


class SlowStore:
    """A store in memory whose appends take so long. `is_far`: so its owner knows."""

    place = "memory"

    def __init__(self, *, append_s: float, is_far: bool) -> None:
        self.is_far = is_far
        self.writes = 0
        self._append_s = append_s
        self._entries: list[Entry] = []

    def read(self, *, start: int = 0) -> list[Entry]:
        return self._entries[start:]

    def append(self, entries: Sequence[Entry]) -> bool:
        self.writes += 1
        time.sleep(self._append_s)
        self._entries += entries
        return True

    def close(self) -> None: ...


async def measured(store: SlowStore) -> dict[str, float]:
    late_s: list[float] = []
    waits_s: list[float] = []
    deeds = Deeds(Journal(store, sign=Identity.create().sign), note=lambda _: None, fail=_give_up)

    async def tick() -> None:
        while True:
            due_at = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            late_s.append(time.monotonic() - due_at)

    ticking = asyncio.create_task(tick())
    for number in range(int(SECONDS * RECORDS_PER_S)):
        deeds.append((Planned(round=RoundId(number), peers=(PeerId("a"),)),))
        for _ in range(MESSAGES_PER_RECORD):
            asked_at = time.monotonic()
            deeds.then(partial(_note_wait, waits_s, asked_at))
        await asyncio.sleep(1 / RECORDS_PER_S)
    await deeds.done()
    ticking.cancel()
    return {
        "writes": store.writes,
        "late_p99_ms": round(1e3 * quantiles(late_s, n=100)[98], 2),
        "late_max_ms": round(1e3 * max(late_s), 2),
        "message_p50_s": round(median(waits_s), 4),
        "message_max_s": round(max(waits_s), 4),
    }


def _note_wait(waits_s: list[float], asked_at: float) -> None:
    waits_s.append(time.monotonic() - asked_at)


def _give_up(error: Exception) -> None:
    raise error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--append-s", type=float, action="append")
    for append_s in parser.parse_args().append_s or [0.05, 0.5]:
        for is_far in (False, True):
            figures = asyncio.run(measured(SlowStore(append_s=append_s, is_far=is_far)))
            way = "far" if is_far else "near"
            print(json.dumps({"append_s": append_s, "way": way, **figures}), flush=True)


if __name__ == "__main__":
    main()
