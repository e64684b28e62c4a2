"""A journal file whose end is damaged is mended, and says so; any other damage is refused."""

import os
import resource
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st
from tests.unit.host.scene import A, B

from atoll import system
from atoll.errors import DamagedError, RunError
from atoll.host.file_store import FileStore, read_file
from atoll.host.journal import Journal
from atoll.host.repair import mend
from atoll.ids import LeaseId, RoundId
from atoll.net.identity import Identity
from atoll.net.records import Committed, Planned, Released

RECORDS = [
    Planned(round=RoundId(n), peers=(A, B))
    if n % 2
    else Released(peer=A, leases=(LeaseId(n),), reason="its holder is gone" + "." * 99 * n)
    for n in range(60)
]
COMMIT = Committed(
    round=RoundId(1), fragment=0, codec="int8", update_codec="int8", roster=(), updates=()
)
IDENTITY = Identity.create()
NAME = "journal.sqlite"


def written(folder, *, records=RECORDS):
    """Write a journal, one record after the other, and return its path."""
    folder.mkdir()
    with closing(Journal(FileStore(folder / NAME), sign=IDENTITY.sign)) as journal:
        for record in records:
            journal.append([record])
    return folder / NAME


def crashed(folder, source, *, records):
    """Append the records to a copy of the journal, and leave the files as a crash does."""
    with closing(Journal(FileStore(source), sign=IDENTITY.sign)) as journal:
        marks = [0]
        for record in records:
            journal.append([record])
            marks.append(source.with_name(NAME + "-wal").stat().st_size)
        copytree(source.parent, folder)
    folder.joinpath(NAME + "-shm").unlink()
    return folder / NAME, marks


@contextmanager
def no_more_files():
    """Let this process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as newest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (newest.fileno(), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def mended(path):
    return mend(path, sign=IDENTITY.sign, home=path.parent / "built-in")


def reopened(path):
    """Return the records that are there, after checking that the journal goes on behind them."""
    with closing(Journal(FileStore(path), sign=IDENTITY.sign)) as journal:
        found = [entry.record for entry in journal.entries]
        journal.append(RECORDS[:1])
    assert mended(path) == (), "what was mended is whole"
    assert [entry.record for entry in read_file(path)] == [*found, RECORDS[0]]
    return found


def change(path, statement, *values):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement, values)


def test_a_whole_journal_is_left_alone(tmp_path):
    path = written(tmp_path / "run")
    before = path.read_bytes()
    assert mended(path) == ()
    assert path.read_bytes() == before
    assert mended(tmp_path / "none") == ()


def test_a_crash_between_two_writes_is_no_damage(tmp_path):
    path, _ = crashed(tmp_path / "copy", written(tmp_path / "run"), records=RECORDS[:3])
    assert mended(path) == ()
    assert reopened(path) == [*RECORDS, *RECORDS[:3]]


def test_a_log_that_was_cut_anywhere_loses_what_was_being_written_and_says_so(tmp_path):
    source, marks = crashed(
        tmp_path / "source", written(tmp_path / "run", records=RECORDS[:9]), records=RECORDS[1:4]
    )
    log = source.with_name(NAME + "-wal").read_bytes()
    assert marks[-1] == len(log)
    edges = {edge + by for edge in marks for by in (-1, 0, 1)}
    cuts = sorted({c for c in {*range(1, len(log), 997), *edges} if 0 <= c <= len(log)})
    for number, cut in enumerate(cuts):
        path = tmp_path / str(number) / NAME
        copytree(source.parent, path.parent)
        path.with_name(NAME + "-wal").write_bytes(log[:cut])
        notes = mended(path)
        survived = sum(mark <= cut for mark in marks[1:])
        assert reopened(path) == [*RECORDS[:9], *RECORDS[1 : 1 + survived]], cut
        if cut in marks or cut == 0:
            assert notes == (), cut
        else:
            (note,) = notes
            dropped = cut - (marks[survived] or 32 * (cut >= 32))  # the log has a header
            assert f"{dropped} bytes" in note, cut
            kept = path.with_name(NAME + ".damaged-1-wal")
            assert kept.read_bytes() == log[:cut]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Return the folder of a journal that a crash left with four writes in its log; their ends."""
    folder = tmp_path_factory.mktemp("log")
    path, marks = crashed(
        folder / "crashed", written(folder / "run", records=RECORDS[:9]), records=RECORDS[1:5]
    )
    return path.parent, marks


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_log_ends_with_the_last_write_that_is_whole_wherever_it_is_cut_or_wrong(log, data):
    source, marks = log
    content = bytearray((source / f"{NAME}-wal").read_bytes())
    cut = data.draw(st.integers(0, len(content)), "cut")
    del content[cut:]
    end = cut
    if content and data.draw(st.booleans(), "is a byte wrong"):
        end = data.draw(st.integers(0, cut - 1), "which")
        content[end] ^= data.draw(st.integers(1, 255), "how")
    with TemporaryDirectory() as folder:
        path = Path(folder, "run", NAME)
        copytree(source, path.parent)
        path.with_name(f"{NAME}-wal").write_bytes(content)
        notes = mended(path)
        survived = sum(mark <= end for mark in marks[1:])
        assert reopened(path) == [*RECORDS[:9], *RECORDS[1 : 1 + survived]]
        if end == cut:
            assert bool(notes) == (cut not in {*marks, 32}), "the log's header has 32 bytes"


def test_garbage_behind_the_log_is_dropped_and_said(tmp_path):
    path, _ = crashed(tmp_path / "copy", written(tmp_path / "run"), records=RECORDS[:2])
    with path.with_name(NAME + "-wal").open("ab") as log:
        log.write(b"\xa5" * 5000)
    (note,) = mended(path)
    assert "5000 bytes" in note
    assert reopened(path) == [*RECORDS, *RECORDS[:2]]


def test_a_log_that_is_used_again_has_old_frames_behind_it_and_that_is_no_damage(tmp_path):
    source = written(tmp_path / "run")
    with closing(Journal(FileStore(source), sign=IDENTITY.sign)) as journal:
        for record in RECORDS[:20]:
            journal.append([record])
        change(source, "PRAGMA wal_checkpoint(RESTART)")
        journal.append(RECORDS[:1])  # over the first of the old frames
        copytree(source.parent, tmp_path / "copy")
    path = tmp_path / "copy" / NAME
    assert mended(path) == ()
    assert reopened(path) == [*RECORDS, *RECORDS[:20], RECORDS[0]]


def test_a_file_that_was_cut_anywhere_is_mended_to_its_last_whole_record_or_refused(tmp_path):
    source = written(tmp_path / "run")
    content = source.read_bytes()
    num_left = []
    for number, length in enumerate(range(len(content) - 1, 0, -2503)):
        path = tmp_path / str(number) / NAME
        path.parent.mkdir()
        path.write_bytes(content[:length])
        try:
            notes = mended(path)
        except DamagedError:
            assert path.read_bytes() == content[:length], "what is refused is left alone"
            num_left.append(0)
            continue
        found = reopened(path)
        assert found == RECORDS[: len(found)], length
        if len(found) < len(RECORDS):
            (note,) = notes
            assert f"behind entry {len(found) - 1}" in note
            assert path.with_name(NAME + ".damaged-1").read_bytes() == content[:length]
        num_left.append(len(found))
    assert num_left[0] > 55, "what was cut off is a part of the last page"
    assert len(set(num_left)) > 5


@pytest.mark.parametrize("column", ["body", "hash", "previous", "signature"])
@pytest.mark.parametrize("num_wrong", [1, 2])
def test_last_records_that_are_wrong_are_dropped_and_said(tmp_path, column, num_wrong):
    path = written(tmp_path / "run")
    last = len(RECORDS) - num_wrong
    change(path, f"UPDATE journal SET {column} = 'ab' WHERE seq >= ?", last)
    damaged = path.read_bytes()
    (note,) = mended(path)
    assert f"behind entry {last - 1}" in note
    assert path.with_name(NAME + ".damaged-1").read_bytes() == damaged
    assert reopened(path) == RECORDS[:last]


@pytest.mark.parametrize("column", ["body", "hash", "previous", "signature"])
def test_a_wrong_record_with_whole_ones_behind_it_is_refused_and_left_alone(tmp_path, column):
    path = written(tmp_path / "run")
    change(path, f"UPDATE journal SET {column} = 'ab' WHERE seq = 57")
    before = path.read_bytes()
    with pytest.raises(DamagedError, match="damaged at entry 57"):
        mended(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_record_with_whole_ones_behind_it_is_refused(tmp_path):
    path = written(tmp_path / "run")
    change(path, "DELETE FROM journal WHERE seq = 30")
    with pytest.raises(DamagedError, match="damaged at entry 30"):
        mended(path)


def test_what_is_no_journal_at_all_is_refused(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(b"?" * 8192)
    with pytest.raises(DamagedError, match="cannot be read"):
        mended(path)
    assert path.read_bytes() == b"?" * 8192


@pytest.mark.parametrize("refusal", [system.full_disk, no_more_files], ids=["full disk", "files"])
def test_a_journal_that_the_system_does_not_let_us_open_is_not_damaged(tmp_path, refusal):
    path = written(tmp_path / "run")
    before = path.read_bytes()
    with refusal(), pytest.raises(RunError, match="cannot be opened") as caught:
        mended(path)
    assert not isinstance(caught.value, DamagedError)
    assert "backup" not in caught.value.hint
    assert path.read_bytes() == before
    assert mended(path) == ()
    assert reopened(path) == RECORDS


def test_a_commit_that_was_announced_and_is_gone_is_said(tmp_path):
    path = written(tmp_path / "run", records=[*RECORDS[:5], COMMIT, RECORDS[5]])
    commits = path.parent / "built-in" / "commits"
    commits.mkdir(parents=True)
    (commits / "000001").touch()
    assert mended(path) == ()
    change(path, "DELETE FROM journal WHERE seq >= 5")
    (note,) = mended(path)
    assert "round 1 had been committed, and the journal ends with round 0" in note
    change(path, "DELETE FROM journal")
    with pytest.raises(DamagedError, match=r"is empty, but round 1 had been committed"):
        mended(path)
