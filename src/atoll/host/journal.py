"""The append-only record of a run, in one SQLite file. What is not in here did not happen.

WAL and synchronous=FULL make each append durable, whole or not at all, before anyone hears of it.
The state of a run is a function of its records: `host/run.py` replays them.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from atoll.errors import DamagedError, RunError
from atoll.net.records import NO_HASH, Entry, Record, encode, entry_hash


class Journal:
    """The journal of one run. One process appends; others may read meanwhile."""

    def __init__(self, path: Path, *, sign: Callable[[bytes], bytes]) -> None:
        self._path = path
        self._sign = sign
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
            raise _unusable(path, error) from error
        self.entries = list(read_entries(path))
        for entry in self.entries:  # Ed25519 signs the same bytes the same way every time
            if sign(bytes.fromhex(entry.hash)) != entry.signature:
                raise _damaged(path, entry.seq)

    def append(self, records: Sequence[Record]) -> list[Entry]:
        """Make the records durable, all or none, and return their entries.

        Raises:
            RunError: the disk is full or gone. Nothing was appended.
        """
        entries: list[Entry] = []
        last = self.entries[-1] if self.entries else None
        seq, previous = (last.seq + 1, last.hash) if last else (0, NO_HASH)
        for record in records:
            body = encode(record)
            digest = entry_hash(seq=seq, previous=previous, body=body)
            entries.append(Entry(seq, previous, body, digest, self._sign(bytes.fromhex(digest))))
            seq, previous = seq + 1, digest
        try:
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO journal VALUES (?, ?, ?, ?, ?)",
                [(e.seq, e.previous, e.body, e.hash, e.signature) for e in entries],
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise RunError(
                f"cannot append to the journal {self._path}: {error}",
                hint="make room on the disk and start the host again; the run goes on from there",
            ) from error
        self.entries += entries
        return entries

    def close(self) -> None:
        self._db.close()


def _unusable(path: Path, error: sqlite3.Error) -> DamagedError:
    return DamagedError(
        f"the journal {path} cannot be read: {error}",
        hint="restore the file from a backup; without its journal a run cannot go on",
    )


def _damaged(path: Path, seq: int) -> DamagedError:
    return DamagedError(
        f"the journal {path} is damaged at entry {seq}", hint="restore the file from a backup"
    )


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a journal in order, each checked against the chain.

    Raises:
        DamagedError: an entry is not what it was when it was written, or one is missing.
    """
    previous = NO_HASH
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            rows = db.execute(
                "SELECT seq, previous, body, hash, signature FROM journal ORDER BY seq"
            )
            for expected_seq, row in enumerate(rows):
                entry = Entry(*row)
                whole = entry_hash(seq=entry.seq, previous=entry.previous, body=entry.body)
                if (entry.seq, entry.previous, entry.hash) != (expected_seq, previous, whole):
                    raise _damaged(path, expected_seq)
                previous = entry.hash
                yield entry
        finally:
            db.close()
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
