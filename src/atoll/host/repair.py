"""The end of a journal file, mended: what a crash, or a damaged disk, has left of it.

    whole entries | what is left of later ones -> dropped, and said
    whole entries | damage | whole entries     -> refused

A file that is mended is kept beside, as it was. SQLite itself drops what does not end its log
whole; what that was is read here before, so that it can be said.
"""

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from shutil import copy2

from atoll.durable import disk_errors, publish
from atoll.errors import DamagedError
from atoll.host.file_store import COLUMNS, FileStore, read_file
from atoll.host.journal import checked, damaged, is_whole
from atoll.net.records import NO_HASH, Committed, Entry, decode
from atoll.system import sync

Sign = Callable[[bytes], bytes]

LOG_HEADER, FRAME_HEADER = struct.Struct(">8I"), struct.Struct(">6I")  # sqlite.org/fileformat2.html
FILE_SIZE = struct.Struct(">16xH10xI")
LOG_MAGIC = 0x377F0682  # with little-endian checksums; one more: big-endian
TAIL = 100  # entries whose signatures are checked here; opening the journal checks all
RESETS = 2**16  # a salt that is older by at most so much is that of a log before this one


def mend(path: Path, *, sign: Sign, home: Path) -> tuple[str, ...]:
    """Mend the end of a journal file, and return what was done, for the operator.

    `home` is the built-in member's directory: it tells whether a commit is missing.

    Raises:
        DamagedError: the damage is not at the end, or nothing is left.
        RunError: the disk is full.
    """
    if not path.exists():
        _refuse_to_begin_anew(path, home)
        return ()
    notes: list[str] = []
    if torn := _torn_bytes(_log_of(path)):
        kept = _keep_copy(path)
        notes.append(
            f"the last write to the journal {path} was cut off: {torn} bytes of it are dropped, "
            f"all records before it are whole; the files as they were: {kept}"
        )
    try:
        FileStore(path).close()  # a start that was cut off may have left a file without a table
        entries = read_file(path)
        _check(entries, path, sign)
    except DamagedError as error:
        entries, note = _mended(path, sign, error)
        notes.append(note)
    if missing := _missing(entries, home):
        notes.append(missing)
        if not entries:
            _refuse_to_begin_anew(path, home)
    return tuple(notes)


def _refuse_to_begin_anew(path: Path, home: Path) -> None:
    if missing := _missing([], home):
        raise DamagedError(
            f"the journal {path} is {'empty' if path.exists() else 'not there'}, but {missing}",
            hint="restore the file from a backup; without its journal a run cannot go on",
        )


def _check(entries: list[Entry], path: Path, sign: Sign) -> None:
    for entry in [*checked(entries, place=str(path))][-TAIL:]:
        if not _is_sound(entry, sign):
            raise damaged(str(path), entry.seq)


def _is_sound(entry: Entry, sign: Sign) -> bool:
    """Return whether the entry, wherever it stands, is one that we once wrote."""
    return is_whole(entry) and sign(bytes.fromhex(entry.hash)) == entry.signature


def _missing(entries: list[Entry], home: Path) -> str:
    """Return which commit has been announced, and is not in the journal; empty: none."""
    rounds = [int(p.name) for p in (home / "commits").glob("*") if p.name.isdecimal()]
    newest = next(
        (r.round for e in reversed(entries) if isinstance(r := decode(e.body), Committed)), 0
    )
    if max(rounds, default=0) <= newest:
        return ""
    return (
        f"round {max(rounds)} had been committed, and the journal ends with round {newest}: "
        "members that hold a later state will be refused, unless a newer copy of it is restored"
    )


# --- a damaged file ------------------------------------------------------------------------------


def _mended(path: Path, sign: Sign, error: DamagedError) -> tuple[list[Entry], str]:
    """Write the file anew, with the entries before the damage; return these, and what was done."""
    sound = _sound_entries(path, sign)
    whole: list[Entry] = []
    while entry := sound.pop(len(whole), None):
        if entry.previous != (whole[-1].hash if whole else NO_HASH):
            break
        whole.append(entry)
    if not whole or (sound and not _is_cut_off(path)):
        raise error
    kept = _keep_copy(path)
    beside = path.with_name(path.name + ".new")
    with disk_errors(path):
        beside.unlink(missing_ok=True)
        with closing(FileStore(beside)) as store:
            store.append(whole)
        sync(beside)
        for suffix in ("-wal", "-shm"):  # of the damaged file; the new one would read them
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        publish(beside, path)
    return whole, (
        f"the journal {path} was damaged behind entry {whole[-1].seq}, its last whole one: "
        f"what followed is dropped; the files as they were: {kept}"
    )


def _sound_entries(path: Path, sign: Sign) -> dict[int, Entry]:
    """Return what can still be read of our entries, from both ends, by their numbers."""
    found: dict[int, Entry] = {}
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA writable_schema=ON")  # or else it reads no file that was cut off
            for row in db.execute(f"SELECT {COLUMNS} FROM journal ORDER BY seq {order}"):
                if _is_sound(entry := Entry(*row), sign):
                    found[entry.seq] = entry
    return found


def _is_cut_off(path: Path) -> bool:
    """Return whether the file is shorter than it says: pages are missing at its end.

    The last page need not hold the last entry, so there may be a whole one behind what is missing.
    """
    with path.open("rb") as file:
        header = file.read(32)
    page_size, num_pages = FILE_SIZE.unpack(header)
    return bool(path.stat().st_size < page_size * num_pages)


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _keep_copy(path: Path) -> Path:
    """Copy the file and its log beside, and return where to."""
    name = next(
        copied
        for n in count(1)
        if not (copied := path.with_name(f"{path.name}.damaged-{n}")).exists()
    )
    with disk_errors(path):
        copy2(path, name)
        if _log_of(path).exists():
            copy2(_log_of(path), _log_of(name))
    return name


# --- SQLite's log --------------------------------------------------------------------------------


def _torn_bytes(log: Path) -> int:
    """Return how many bytes the log has behind its last whole transaction, which SQLite drops.

    Frames of an older log, which this one has begun to overwrite, are none of these.
    """
    content = log.read_bytes() if log.exists() else b""
    if not content:
        return 0
    if len(content) < LOG_HEADER.size or not _has_good_header(content):
        return len(content)
    whole = _whole_log_bytes(content)
    rest = content[whole:]
    if len(rest) >= FRAME_HEADER.size:
        ours, theirs = LOG_HEADER.unpack_from(content)[4], FRAME_HEADER.unpack_from(rest)[2]
        if 0 < (ours - theirs) % 2**32 < RESETS:
            return 0
    return len(rest)


def _has_good_header(content: bytes) -> bool:
    magic, *_, first, second = LOG_HEADER.unpack_from(content)
    if magic not in (LOG_MAGIC, LOG_MAGIC + 1):
        return False
    return _checksum(content[:24], (0, 0), big=magic > LOG_MAGIC) == (first, second)


def _whole_log_bytes(content: bytes) -> int:
    """Return where the last whole transaction of the log ends."""
    magic, _, page_size, _, *salts, first, second = LOG_HEADER.unpack_from(content)
    sums, whole = (first, second), LOG_HEADER.size
    size = FRAME_HEADER.size + page_size
    for start in range(LOG_HEADER.size, len(content) - size + 1, size):
        _, pages_after_commit, *frame_salts, first, second = FRAME_HEADER.unpack_from(
            content, start
        )
        page = content[start + FRAME_HEADER.size : start + size]
        sums = _checksum(content[start : start + 8] + page, sums, big=magic > LOG_MAGIC)
        if frame_salts != salts or sums != (first, second):
            break
        if pages_after_commit:
            whole = start + size
    return whole


def _checksum(payload: bytes, sums: tuple[int, int], *, big: bool) -> tuple[int, int]:
    """Return SQLite's checksum of the payload, going on from `sums`."""
    words = struct.unpack(f"{'>' if big else '<'}{len(payload) // 4}I", payload)
    a, b = sums
    for even, odd in zip(words[::2], words[1::2], strict=True):
        a = (a + even + b) & 0xFFFFFFFF
        b = (b + odd + a) & 0xFFFFFFFF
    return a, b
