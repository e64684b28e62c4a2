"""The database that the hosts of a fleet share: their journal, who leads, and who stands by.

A value in memory that does what `host/postgres_store.py` has Postgres do: a call is one statement,
which is carried out or is not; an entry has one place; times are those of the database's own clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from atoll.errors import RunError
from atoll.host.journal import led_in
from atoll.host.store import Lead, Word
from atoll.net.records import Entry


@dataclass
class Database:
    """`now` is its clock. `standbys`: until when each stays, and what it is told."""

    now: Callable[[], float]
    entries: list[Entry] = field(default_factory=list)
    epoch: int = 0
    address: str = ""
    ends_at: float = 0.0
    standbys: dict[str, tuple[float, Word]] = field(default_factory=dict)


class DatabaseStore:
    """A host's connection to the database, a `SharedStore`; `is_reached` says whether it is one."""

    place, is_far = "the database", True

    def __init__(self, database: Database, is_reached: Callable[[], bool]) -> None:
        self._database = database
        self._is_reached = is_reached

    @property
    def _db(self) -> Database:
        if not self._is_reached():
            raise RunError("the database cannot be reached")
        return self._database

    def read(self, *, start: int = 0) -> list[Entry]:
        return self._db.entries[start:]

    def append(self, entries: Sequence[Entry]) -> bool:
        start, there = entries[0].seq, self._db.entries
        if start == len(there):
            there += entries
        return there[start : start + len(entries)] == list(entries)

    def close(self) -> None:
        pass

    def lead(self) -> Lead | None:
        db = self._db
        is_over = db.ends_at <= db.now()
        return Lead(db.epoch, db.address, db.ends_at, is_over) if db.epoch else None

    def take_lead(self, led: Entry, *, lead_s: float, called: bool) -> bool:
        db, record = self._db, led_in(led)
        if db.epoch >= record.epoch or not (called or db.ends_at <= db.now()):
            return False
        if not self.append([led]):
            return False
        db.epoch, db.address, db.ends_at = record.epoch, record.address, db.now() + lead_s
        return True

    def renew_lead(self, epoch: int, *, lead_s: float) -> bool:
        db = self._db
        if db.epoch != epoch:
            return False
        db.ends_at = db.now() + lead_s
        return True

    def end_lead(self, epoch: int) -> None:
        db = self._db
        if db.epoch == epoch:
            db.ends_at = db.now()

    def stand_by(self, address: str, *, stays_s: float) -> Word:
        db = self._db
        _, word = db.standbys.get(address, (0.0, Word.STAY))
        db.standbys[address] = (db.now() + stays_s, word)
        return word

    def standbys(self) -> list[str]:
        db = self._db
        return [address for address, (until, _) in sorted(db.standbys.items()) if until > db.now()]

    def leave(self, address: str) -> None:
        self._db.standbys.pop(address, None)

    def tell(self, address: str, word: Word) -> bool:
        if address not in self.standbys():
            return False
        until, _ = self._db.standbys[address]
        self._db.standbys[address] = (until, word)
        return True
