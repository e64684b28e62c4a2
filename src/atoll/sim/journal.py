"""A host's journal on a machine that may die at any of its writes."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from atoll.host.store import Store
from atoll.net.records import Entry

Moment: TypeAlias = Literal["before", "after"]


class TappedStore:
    """A `Store` whose appends can be the last that the process does: see `tap`.

    It is called just before an append (what is lost then, nobody has heard of) and just after it
    (what is there then, nobody has heard of either).
    """

    def __init__(self, store: Store, tap: Callable[[Moment], None], *, is_far: bool) -> None:
        self._store = store
        self._tap = tap
        self._is_far = is_far

    @property
    def place(self) -> str:
        return self._store.place

    @property
    def is_far(self) -> bool:
        """As if it were a database elsewhere: an append then takes its time."""
        return self._is_far

    def read(self, *, start: int = 0) -> list[Entry]:
        return self._store.read(start=start)

    def append(self, entries: Sequence[Entry]) -> bool:
        self._tap("before")
        is_first = self._store.append(entries)
        self._tap("after")
        return is_first

    def close(self) -> None:
        self._store.close()
