"""What decisions ask for, done in their order: nothing before the records ahead of it are durable.

    decision --append--> waiting --> store --durable--> what follows: messages, reports
             --then----> waiting ---------------------'

A decision counts at once: the next one builds on it. What it leads to waits for its records, and
for all that was asked for before. With a store at hand (a file) that is no time at all. One that is
far away is written to in a thread, and all records that wait by then go there together. If they
cannot be written nothing that follows them is done, and the host has to end: it has decided on what
is not in its journal.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeAlias

from atoll.exchange.tasks import in_thread
from atoll.host.journal import Journal
from atoll.net.records import Entry, Record

Deed: TypeAlias = Callable[[], None]


@dataclass(slots=True)
class _Written:
    """Records, in their place among the deeds."""

    records: tuple[Record, ...]
    is_durable: bool = False


class Deeds:
    """`note` is called with entries once they are durable; `fail` if they cannot be, with why."""

    def __init__(
        self,
        journal: Journal,
        *,
        note: Callable[[list[Entry]], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._journal = journal
        self._note = note
        self._fail = fail
        self._waiting: deque[_Written | Deed] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._watched: set[asyncio.Future[None]] = set()  # by those who wait in `done`

    def append(self, records: tuple[Record, ...]) -> None:
        """Make these records durable before anything that follows.

        Raises:
            RunError: the store is at hand, and does not take them.
        """
        self._add(_Written(records))

    def then(self, deed: Deed) -> None:
        """Do this once all that was asked for before is done."""
        self._add(deed)

    async def done(self) -> None:
        """Return once all that was asked for so far is done.

        Raises:
            RunError: it never will be.
        """
        reached = asyncio.get_running_loop().create_future()
        self._watched.add(reached)
        try:
            self.then(partial(_reach, reached))
            await reached
        finally:
            self._watched.discard(reached)

    async def end(self) -> None:
        """Return once no thread writes any more; whatever waits for that stays undone."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def _add(self, one: _Written | Deed) -> None:
        if self._error is not None:
            raise self._error
        self._waiting.append(one)
        self._go_on()

    def _go_on(self) -> None:
        """Do what can be done now."""
        while self._waiting and self._writing is None:
            first = self._waiting[0]
            if isinstance(first, _Written) and not first.is_durable:
                if self._journal.store.is_far:
                    self._writing = asyncio.create_task(self._write())
                    return
                self._write_now(first)
            self._waiting.popleft()
            if not isinstance(first, _Written):
                first()

    def _write_now(self, written: _Written) -> None:
        try:
            self._note(self._journal.append(written.records))
        except Exception as error:
            self._give_up(error)
            raise

    async def _write(self) -> None:
        """Make all records durable that wait now, and go on."""
        batch = [one for one in self._waiting if isinstance(one, _Written)]
        entries = self._journal.signed(list(chain(*(one.records for one in batch))))
        try:
            if not await in_thread(self._journal.store.append, entries):
                raise await in_thread(self._journal.superseded)
            self._journal.note(entries)
            self._note(entries)
            for one in batch:
                one.is_durable = True
            self._writing = None
            self._go_on()
        except Exception as error:  # noqa: BLE001 - it ends the host, which raises it
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._error = error
        self._fail(error)
        for reached in self._watched:
            if not reached.done():
                reached.set_exception(error)


def _reach(reached: "asyncio.Future[None]") -> None:
    if not reached.done():  # nobody waits any more
        reached.set_result(None)
