"""Which store a run has its journal in, and how that is remembered in the host's directory.

journal.sqlite    the journal itself         journal.url    or the database that has it
"""

from pathlib import Path

from atoll.config import load_run_config, run_digest
from atoll.errors import ConfigError
from atoll.host.file_store import FileStore, read_file
from atoll.host.journal import checked
from atoll.host.store import SharedStore, Store
from atoll.ids import Digest
from atoll.net.identity import write_private
from atoll.net.records import Entry

JOURNAL_FILE = "journal.sqlite"
URL_FILE = "journal.url"  # it may have a password in it: only this user can read it
COPIED_AT_ONCE = 500  # entries
POSTGRES = ("postgresql://", "postgres://")


def journal_url(directory: Path) -> str:
    """Return the database that has the run's journal; empty: it is a file of this directory."""
    path = directory / URL_FILE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def keep_in(url: str, directory: Path, *, run: Digest) -> None:
    """Have this and later commands on the directory use this database.

    A journal that is a file of the directory moves there, and the file gets another name.

    Raises:
        ConfigError: this is no database, the run was begun with another one, or has another journal
            in this one.
        RunError: the disk is full, or the database is gone.
    """
    known = journal_url(directory)
    if known and known != url:
        raise ConfigError(
            f"{directory / URL_FILE} names another database than --journal",
            hint="if the database has moved, with all that was in it, delete that file",
        )
    file = directory / JOURNAL_FILE
    if not known:  # nothing is remembered that cannot be used
        _copy(read_journal(directory) if file.exists() else [], url, run=run)
    write_private(directory / URL_FILE, url.encode() + b"\n")
    if file.exists():
        file.rename(file.with_name(f"{JOURNAL_FILE}.moved"))


def _copy(entries: list[Entry], url: str, *, run: Digest) -> None:
    store = open_shared(url, run=run)
    try:
        for start in range(0, len(entries), COPIED_AT_ONCE):
            if not store.append(entries[start : start + COPIED_AT_ONCE]):
                raise ConfigError(
                    f"{store.place} has another journal of this run",
                    hint="name an empty database, or start without --journal",
                )
    finally:
        store.close()


def open_shared(url: str, *, run: Digest) -> SharedStore:
    """Return the journal of this run in the database.

    Raises:
        ConfigError: this is no address of a database, or the package for it is missing.
        RunError: the database cannot be reached.
    """
    if not url.startswith(POSTGRES):
        raise ConfigError(
            f"no journal can be kept in {url.partition(':')[0]!r}",
            hint="write --journal postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        )
    try:
        from atoll.host.postgres_store import PostgresStore
    except ImportError as error:
        raise ConfigError(
            f"a journal in Postgres needs another package: {error}",
            hint="pip install 'atoll[postgres]'",
        ) from error
    return PostgresStore(url, run=run)


def open_file(directory: Path) -> Store:
    return FileStore(directory / JOURNAL_FILE)


def read_journal(directory: Path) -> list[Entry]:
    """Return the entries of the run in this host's directory, checked against the chain.

    The run may be served meanwhile, or not. Empty: it has not begun.

    Raises:
        DamagedError: an entry is not what it was when it was written, or one is missing.
        RunError: its database cannot be reached.
    """
    path = directory / JOURNAL_FILE
    if url := journal_url(directory):
        store = open_shared(url, run=run_digest(load_run_config(directory / "run.toml")))
        try:
            return list(checked(store.read(), place=store.place))
        finally:
            store.close()
    return list(checked(read_file(path), place=str(path))) if path.exists() else []
