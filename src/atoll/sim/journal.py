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

    def append(self, records: Sequence[Record]) -> list[Entry]:
        self._tap("before", records)  # what is lost now, nobody has heard of
        entries = self._journal.append(records)
        self._tap("after", records)  # what is there now, nobody has heard of
        return entries
