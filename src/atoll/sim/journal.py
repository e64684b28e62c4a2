"""A host's journal on a machine that may die at any of its writes."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from atoll.host.journal import Journal
from atoll.net.records import Entry, Record

Moment: TypeAlias = Literal["before", "after"]


class TappedJournal:
    """A `Journal` whose appends are counted. `tap` is called just before and just after each."""

    def __init__(self, journal: Journal, tap: Callable[[Moment, Sequence[Record]], None]) -> None:
        self._journal = journal
        self._tap = tap

    @property
    def entries(self) -> list[Entry]:
        return self._journal.entries

    @property
    def led(self) -> Entry | None:
        return self._journal.led

    @property
    def epoch(self) -> int:
        return self._journal.epoch

    def next_led(self, address: str, *, at: float, above: int = 0) -> Entry:
        return self._journal.next_led(address, at=at, above=above)

    def append(self, records: Sequence[Record]) -> list[Entry]:
        self._tap("before", records)  # what is lost now, nobody has heard of
        entries = self._journal.append(records)
        self._tap("after", records)  # what is there now, nobody has heard of
        return entries
