import math
import resource
import sqlite3
from contextlib import closing, contextmanager
from shutil import copy

import pytest
from msgspec import ValidationError
from tests.unit.host.scene import A, B

from atoll.errors import DamagedError, RunError
from atoll.host.file_store import FileStore, read_file
from atoll.host.journal import Journal, checked
from atoll.ids import LeaseId, RoundId, digest_of
from atoll.net.identity import Identity, verify
from atoll.net.records import NO_HASH, InviteMade, Planned, Released

RECORDS = [
    Planned(round=RoundId(1), peers=(A, B)),
    Released(peer=A, leases=(LeaseId(1),), reason="its holder is gone"),
    Planned(round=RoundId(2), peers=(B,)),
]


def open_journal(path, *, sign):
    return Journal(FileStore(path), sign=sign)


def read_entries(path):
    return checked(read_file(path), place=str(path))


@pytest.fixture
def identity():
    return Identity.create()


@pytest.fixture
def path(tmp_path, identity):
    """A journal of three records."""
    path = tmp_path / "journal.sqlite"
    with closing(open_journal(path, sign=identity.sign)) as journal:
        journal.append(RECORDS[:2])
        journal.append(RECORDS[2:])
    return path


@contextmanager
def disk_full_after(num_bytes):
    """Let every file that grows beyond `num_bytes` fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write(path, statement, *values):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement, values)


def test_what_was_appended_is_read_in_a_signed_chain(path, identity):
    entries = list(read_entries(path))
    assert [entry.record for entry in entries] == RECORDS
    assert [entry.seq for entry in entries] == [0, 1, 2]
    assert [entry.previous for entry in entries] == [NO_HASH, entries[0].hash, entries[1].hash]
    for entry in entries:
        assert verify(identity.public_key, bytes.fromhex(entry.hash), entry.signature)
        assert not verify(identity.public_key, bytes.fromhex(NO_HASH), entry.signature)


def test_an_opened_journal_goes_on_where_it_ended(path, identity):
    with closing(open_journal(path, sign=identity.sign)) as journal:
        assert [entry.record for entry in journal.entries] == RECORDS
        (new,) = journal.append(RECORDS[:1])
        assert (new.seq, new.previous) == (3, journal.entries[2].hash)
        assert journal.entries[3] == new
        assert list(read_entries(path)) == journal.entries  # others may read meanwhile


def test_appending_nothing_changes_nothing(path, identity):
    with closing(open_journal(path, sign=identity.sign)) as journal:
        assert journal.append([]) == []
    assert len(list(read_entries(path))) == 3


@pytest.mark.parametrize("seq", [0, 1, 2])
@pytest.mark.parametrize("column", ["body", "hash", "previous"])
def test_a_changed_byte_is_found(path, identity, seq, column):
    with closing(sqlite3.connect(path)) as db:
        query = f"SELECT {column} FROM journal WHERE seq = ?"
        (content,) = db.execute(query, (seq,)).fetchone()
    if isinstance(content, bytes):
        changed = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    else:
        changed = ("0" if content[0] != "0" else "1") + content[1:]
    write(path, f"UPDATE journal SET {column} = ? WHERE seq = ?", changed, seq)
    with pytest.raises(DamagedError, match=f"damaged at entry {seq}"):
        list(read_entries(path))
    with pytest.raises(DamagedError):
        open_journal(path, sign=identity.sign)


def test_a_changed_signature_is_found_when_the_journal_is_opened(path, identity):
    write(path, "UPDATE journal SET signature = ? WHERE seq = 1", bytes(64))
    with pytest.raises(DamagedError, match="damaged at entry 1"):
        open_journal(path, sign=identity.sign)


@pytest.mark.parametrize(
    ("statement", "at"),
    [
        ("DELETE FROM journal WHERE seq = 0", 0),
        ("DELETE FROM journal WHERE seq = 1", 1),
        ("UPDATE journal SET seq = 7 WHERE seq = 2", 2),
    ],
)
def test_a_missing_or_moved_entry_is_found(path, statement, at):
    write(path, statement)
    with pytest.raises(DamagedError, match=f"damaged at entry {at}"):
        list(read_entries(path))


def test_a_file_that_is_no_journal_is_damaged(path, identity):
    path.write_bytes(b"SQLite format 3?" + bytes(100))
    with pytest.raises(DamagedError, match="cannot be read"):
        open_journal(path, sign=identity.sign)
    with pytest.raises(DamagedError, match="cannot be read"):
        list(read_entries(path))
    with pytest.raises(DamagedError):
        list(read_entries(path.with_name("none")))


def test_a_torn_write_ahead_log_costs_what_was_being_written_and_no_more(path, identity, tmp_path):
    """Copy the files as a crash leaves them, cut the log short, and open the copy."""
    with closing(open_journal(path, sign=identity.sign)) as journal:
        journal.append(RECORDS[:1])
        whole = path.with_name("journal.sqlite-wal").stat().st_size
        journal.append(RECORDS[1:])
        copied = tmp_path / "copy"
        copied.mkdir()
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            copy(path.with_name(name), copied / name)
    log = copied / "journal.sqlite-wal"
    assert log.stat().st_size > whole
    log.write_bytes(log.read_bytes()[: whole + 1000])
    with closing(open_journal(copied / "journal.sqlite", sign=identity.sign)) as journal:
        assert [entry.record for entry in journal.entries] == [*RECORDS, RECORDS[0]]
        journal.append(RECORDS[1:])
        assert len(list(read_entries(copied / "journal.sqlite"))) == 6


@pytest.mark.parametrize("num_bytes", [1, 20_000, 60_000])
def test_when_the_disk_is_full_nothing_is_appended_and_later_it_goes_on(path, identity, num_bytes):
    huge = Released(peer=A, leases=(), reason="x" * 100_000)
    with closing(open_journal(path, sign=identity.sign)) as journal:
        with disk_full_after(num_bytes), pytest.raises(RunError, match="cannot append") as caught:
            journal.append([RECORDS[0], huge])
        assert "make room" in caught.value.hint
        assert len(journal.entries) == 3
        journal.append(RECORDS[:1])
    assert [entry.record for entry in read_entries(path)] == [*RECORDS, RECORDS[0]]


def test_a_second_writer_is_an_error_and_not_a_fork(path, identity):
    one = open_journal(path, sign=identity.sign)
    other = open_journal(path, sign=identity.sign)
    with closing(one), closing(other):
        one.append(RECORDS[:1])
        with pytest.raises(RunError):
            other.append(RECORDS[1:2])
    assert [entry.record for entry in read_entries(path)] == [*RECORDS, RECORDS[0]]


@pytest.mark.parametrize("never", [math.inf, math.nan])
def test_what_could_not_be_read_again_is_not_written(path, identity, never):
    token = digest_of(b"token")
    with closing(open_journal(path, sign=identity.sign)) as journal:
        with pytest.raises(ValidationError):
            journal.append([InviteMade(token=token, uses=1, expires_at=never)])
        journal.append(RECORDS[:1])
    assert len(list(read_entries(path))) == 4
