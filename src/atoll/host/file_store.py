"""The journal in one SQLite file of the host's directory: the store of a host without a standby.

WAL and synchronous=FULL make each append durable, whole or not at all, before anyone hears of it.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from atoll.errors import DamagedError, RunError
from atoll.net.records import Entry

COLUMNS = "seq, previous, body, hash, signature"
# What says something of the system, and nothing of the file: it is as it was written.
SYSTEM = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM),
}
SHORT_READ = sqlite3.SQLITE_IOERR_SHORT_READ  # an error of the system by its kind; of the file


class FileStore:
    """One process appends; others may read meanwhile, with `read_file`.

    Raises:
        DamagedError: the file is no journal.
        RunError: the system does not let us write there now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY, "
                "previous TEXT NOT NULL, body BLOB NOT NULL, hash TEXT NOT NULL, "
                "signature BLOB NOT NULL)"
            )
        except sqlite3.Error as error:
            raise unusable(path, error) from error

    @property
    def place(self) -> str:
        return str(self._path)

    @property
    def is_far(self) -> bool:
        return False

    def read(self, *, start: int = 0) -> list[Entry]:
        return read_file(self._path, start=start)

    def append(self, entries: Sequence[Entry]) -> bool:
        rows = [(e.seq, e.previous, e.body, e.hash, e.signature) for e in entries]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:  # a full disk may have ended it already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            return False
        except sqlite3.Error as error:
            raise RunError(
                f"cannot append to the journal {self._path}: {error}",
                hint="make room on the disk and start the host again; the run goes on from there",
            ) from error
        return True

    def close(self) -> None:
        self._db.close()


def read_file(path: Path, *, start: int = 0) -> list[Entry]:
    """Return the entries of a journal file, which is served meanwhile or not.

    Raises:
        DamagedError: the file is missing, or no journal.
        RunError: the system does not let us read it now.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            rows = db.execute(
                f"SELECT {COLUMNS} FROM journal WHERE seq >= ? ORDER BY seq", (start,)
            )
            return [Entry(*row) for row in rows]
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: sqlite3.Error) -> RunError:
    """Return what is wrong: the file, or what the system lets us do with it now."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in SYSTEM and code != SHORT_READ and path.exists():
        return RunError(
            f"the journal {path} cannot be opened: {error}",
            hint="see whether the disk is full, who may write there, and how many files a process "
            "may open; then start again: the journal is as it was",
        )
    return DamagedError(
        f"the journal {path} cannot be read: {error}",
        hint="restore the file from a backup; without its journal a run cannot go on",
    )
