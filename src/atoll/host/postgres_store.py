"""The journal in a Postgres database that hosts on several machines reach.

One database may hold many runs. Every method is one statement, or several that only read: a host
that is frozen, or cut off, in the middle holds no lock. What a primary key refuses, nobody can
append.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import Lock, Timer
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import class_row

from atoll.errors import ConfigError, RunError
from atoll.host.store import Lead, Word
from atoll.ids import Digest
from atoll.net.records import Entry, Led

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

ANSWER_S = 10  # for the database to answer, or else it counts as gone
PATIENCE = 1.5  # times as long for one that does not even say that it takes too long
# Two hosts may begin at once, and `IF NOT EXISTS` alone does not keep them apart.
SCHEMA: LiteralString = """
    SELECT pg_advisory_xact_lock(7470);
    CREATE TABLE IF NOT EXISTS atoll_journal (
        run text NOT NULL, seq bigint NOT NULL, previous text NOT NULL, body bytea NOT NULL,
        hash text NOT NULL, signature bytea NOT NULL, PRIMARY KEY (run, seq));
    CREATE TABLE IF NOT EXISTS atoll_lead (
        run text PRIMARY KEY, epoch bigint NOT NULL, address text NOT NULL,
        ends_at timestamptz NOT NULL);
    CREATE TABLE IF NOT EXISTS atoll_standby (
        run text NOT NULL, address text NOT NULL, stays_until timestamptz NOT NULL,
        word text NOT NULL, PRIMARY KEY (run, address));"""
READ_AT_ONCE = 500  # entries: a long journal takes longer than a statement may
READ: LiteralString = """
    SELECT seq, previous, body, hash, signature FROM atoll_journal
    WHERE run = %(run)s AND seq >= %(start)s ORDER BY seq LIMIT %(most)s"""
APPEND: LiteralString = """
    INSERT INTO atoll_journal (run, seq, previous, body, hash, signature)
    SELECT %(run)s, new.* FROM unnest(%(seqs)s::bigint[], %(previous)s::text[],
        %(bodies)s::bytea[], %(hashes)s::text[], %(signatures)s::bytea[]) AS new"""
TAKE_LEAD: LiteralString = (
    """
    WITH taken AS (
        INSERT INTO atoll_lead (run, epoch, address, ends_at)
        VALUES (%(run)s, %(epoch)s, %(address)s,
            clock_timestamp() + make_interval(secs => %(lead_s)s))
        ON CONFLICT (run) DO UPDATE SET
            epoch = excluded.epoch, address = excluded.address, ends_at = excluded.ends_at
        WHERE atoll_lead.epoch < excluded.epoch
            AND (%(called)s OR atoll_lead.ends_at <= clock_timestamp())
        RETURNING run)"""
    + APPEND
    + " WHERE EXISTS (SELECT 1 FROM taken)"
)
GET_LEAD: LiteralString = """
    SELECT epoch, address, extract(epoch FROM ends_at)::float8 AS ends_at,
        ends_at <= clock_timestamp() AS is_over
    FROM atoll_lead WHERE run = %(run)s"""
RENEW_LEAD: LiteralString = """
    UPDATE atoll_lead SET ends_at = clock_timestamp() + make_interval(secs => %(lead_s)s)
    WHERE run = %(run)s AND epoch = %(epoch)s"""
END_LEAD: LiteralString = """
    UPDATE atoll_lead SET ends_at = clock_timestamp()
    WHERE run = %(run)s AND epoch = %(epoch)s"""
STAND_BY: LiteralString = """
    INSERT INTO atoll_standby (run, address, stays_until, word)
    VALUES (%(run)s, %(address)s,
        clock_timestamp() + make_interval(secs => %(stays_s)s), 'stay')
    ON CONFLICT (run, address) DO UPDATE SET stays_until = excluded.stays_until
    RETURNING word"""
STANDBYS: LiteralString = """
    SELECT address FROM atoll_standby
    WHERE run = %(run)s AND stays_until > clock_timestamp() ORDER BY address"""
LEAVE: LiteralString = "DELETE FROM atoll_standby WHERE run = %(run)s AND address = %(address)s"
TELL: LiteralString = """
    UPDATE atoll_standby SET word = %(word)s
    WHERE run = %(run)s AND address = %(address)s AND stays_until > clock_timestamp()"""


class PostgresStore:
    """The journal of the run of this digest. Methods may be called from several threads."""

    def __init__(self, url: str, *, run: Digest, answer_s: int = ANSWER_S) -> None:
        self._conninfo = _conninfo(url, answer_s=answer_s)
        self._run = run
        self._answer_s = answer_s
        self._lock = Lock()
        self._db: Connection | None = None
        self._do(lambda db: db.execute(SCHEMA))

    @property
    def place(self) -> str:
        parts = conninfo_to_dict(self._conninfo)  # all but the password
        host = f"{parts.get('host', 'this machine')}:{parts.get('port', 5432)}"
        return f"{parts.get('dbname', 'postgres')} at {host}"

    @property
    def is_far(self) -> bool:
        return True

    def read(self, *, start: int = 0) -> list[Entry]:
        entries: list[Entry] = []
        while True:
            next_seq = start + len(entries)
            page = self._do(partial(self._entries, start=next_seq, most=READ_AT_ONCE))
            entries += page
            if len(page) < READ_AT_ONCE:
                return entries

    def append(self, entries: Sequence[Entry]) -> bool:
        return self._insert(APPEND, entries, {})

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()

    # --- who leads ------------------------------------------------------------------------------

    def lead(self) -> Lead | None:
        def ask(db: Connection) -> Lead | None:
            return db.cursor(row_factory=class_row(Lead)).execute(GET_LEAD, self._with()).fetchone()

        return self._do(ask)

    def take_lead(self, led: Entry, *, lead_s: float, called: bool) -> bool:
        record = led.record
        assert isinstance(record, Led), "a leader is one by this record"
        who = {"epoch": record.epoch, "address": record.address}
        return self._insert(TAKE_LEAD, [led], {**who, "lead_s": lead_s, "called": called})

    def renew_lead(self, epoch: int, *, lead_s: float) -> bool:
        return self._change(RENEW_LEAD, epoch=epoch, lead_s=lead_s) > 0

    def end_lead(self, epoch: int) -> None:
        self._change(END_LEAD, epoch=epoch)

    def stand_by(self, address: str, *, stays_s: float) -> Word:
        def ask(db: Connection) -> Word:
            row = db.execute(STAND_BY, self._with(address=address, stays_s=stays_s)).fetchone()
            assert row is not None, "it returns the row that it wrote"
            return Word(row[0])

        return self._do(ask)

    def standbys(self) -> list[str]:
        rows = self._do(lambda db: db.execute(STANDBYS, self._with()).fetchall())
        return [address for (address,) in rows]

    def leave(self, address: str) -> None:
        self._change(LEAVE, address=address)

    def tell(self, address: str, word: Word) -> bool:
        return self._change(TELL, address=address, word=word.value) > 0

    # --- one statement --------------------------------------------------------------------------

    def _insert(
        self, statement: LiteralString, entries: Sequence[Entry], values: Mapping[str, object]
    ) -> bool:
        """Append the entries with this statement; return whether they are there then."""
        arrays = {
            "seqs": [e.seq for e in entries],
            "previous": [e.previous for e in entries],
            "bodies": [e.body for e in entries],
            "hashes": [e.hash for e in entries],
            "signatures": [e.signature for e in entries],
        }

        def insert(db: Connection) -> bool:
            try:
                if db.execute(statement, self._with(**values, **arrays)).rowcount > 0:
                    return True
            except psycopg.errors.UniqueViolation:
                pass
            # They may be there all the same, if the connection broke after a first attempt.
            there = self._entries(db, start=entries[0].seq, most=len(entries))
            return there == list(entries)

        return self._do(insert)

    def _entries(self, db: Connection, *, start: int, most: int) -> list[Entry]:
        rows = db.cursor(row_factory=class_row(Entry))
        return rows.execute(READ, self._with(start=start, most=most)).fetchall()

    def _change(self, statement: LiteralString, **values: object) -> int:
        return self._do(lambda db: db.execute(statement, self._with(**values)).rowcount)

    def _with(self, **values: object) -> dict[str, object]:
        return {"run": self._run, **values}

    def _do(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` returns, which is done again if the connection broke meanwhile.

        Raises:
            RunError: the database is gone, or does not let us.
        """
        with self._lock:
            try:
                try:
                    return self._in_time(work)
                except psycopg.OperationalError:
                    self._connection().close()
                    return self._in_time(work)
            except psycopg.Error as error:
                raise RunError(
                    f"the journal {self.place} cannot be used: {str(error).strip()}",
                    hint="see whether the database runs and lets us in, then start again; "
                    "what it has confirmed is safe",
                ) from error

    def _in_time(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` returns; if that takes too long, break the connection.

        A server that is frozen keeps to no timeout of its own, and TCP notices nothing: its kernel
        goes on to acknowledge what we send.
        """
        db = self._connection()
        patience = Timer(PATIENCE * self._answer_s, partial(_hang_up, db))
        patience.daemon = True
        patience.start()
        try:
            return work(db)
        finally:
            patience.cancel()

    def _connection(self) -> Connection:
        if self._db is None or self._db.closed:
            self._db = psycopg.connect(self._conninfo, autocommit=True)
        return self._db


def _hang_up(db: Connection) -> None:
    """Break the connection under whoever waits for an answer."""
    with (
        suppress(psycopg.Error, OSError),  # it is closed by now
        socket.socket(fileno=os.dup(db.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def _conninfo(url: str, *, answer_s: int) -> str:
    """Return the address with our options.

    Raises:
        ConfigError: this is no address of a database.
    """
    options: dict[str, str | int] = {
        "connect_timeout": answer_s,
        "tcp_user_timeout": 1000 * answer_s,  # ms
        "keepalives_idle": answer_s,
        "options": f"-c statement_timeout={answer_s}s -c synchronous_commit=on",
        "application_name": "atoll",
    }
    try:
        return make_conninfo(url, **options)
    except psycopg.Error as error:
        raise ConfigError(
            f"not the address of a Postgres database: {str(error).strip()}",
            hint="write --journal postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        ) from error
