"""The host's directory, and how a run begins in it.

run.toml          what the run is                   authority.pem   signs members and records
journal.sqlite    what happened, for good           host/           the host's own identity
journal.url       or the database that has it       built-in/       the built-in member
events.jsonl      what happened, for people         initial/        the weights it began with, if
                                                                    run.toml names them
"""

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from atoll.clock import wall_s
from atoll.config import RunConfig, canonical, run_digest
from atoll.errors import ConfigError, RunError
from atoll.exchange.initial import require_initial
from atoll.host.journal import Journal
from atoll.host.repair import mend
from atoll.host.store import SharedStore
from atoll.host.stores import JOURNAL_FILE, journal_url, keep_in, open_file, open_shared
from atoll.ids import Digest
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.net.records import Genesis


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """An opened directory: one host process at a time."""

    path: Path
    lock: FileLock
    journal: Journal
    shared: SharedStore | None  # where the journal is kept, if other hosts reach it, too
    authority: Authority
    identity: Identity
    built_in: Identity
    notes: tuple[str, ...]  # what the operator should know: what was mended

    def close(self) -> None:
        self.journal.close()
        self.lock.release()


def open_run(path: Path, config: RunConfig, *, dataset: Digest, url: str = "") -> RunDirectory:
    """Return the run of this directory, begun now if it is new.

    `url` is the database for its journal; empty: the one it was begun with, or a file.

    Raises:
        ConfigError: it was begun with another run.toml, on other text, or with other keys.
        RunError: another host process serves it, or a file of it is damaged.
    """
    lock = FileLock(path / "host.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"another host process serves {path}",
            hint="stop it first; two hosts cannot share a run",
        ) from None
    try:
        return _open(path, config, dataset=dataset, url=url, lock=lock)
    except BaseException:
        lock.release()
        raise


def _open(
    path: Path, config: RunConfig, *, dataset: Digest, url: str, lock: FileLock
) -> RunDirectory:
    if url:
        keep_in(url, path, run=run_digest(config))
    opened = _opened_shared if journal_url(path) else _opened_file
    journal, shared, notes = opened(path, config)
    authority, built_in = Authority.load(path), Identity.load(path / "built-in")
    if not journal.entries:
        require_initial(config, path)
        journal.append([_genesis(config, dataset, authority, built_in)])
    _compare(path, journal, config, dataset)
    identity = Identity.load(path / "host")
    return RunDirectory(path, lock, journal, shared, authority, identity, built_in, notes)


def _opened_file(path: Path, config: RunConfig) -> tuple[Journal, None, tuple[str, ...]]:
    if not Authority.exists(path):
        _create(path, config)
    sign = Authority.load(path).sign
    notes = mend(path / JOURNAL_FILE, sign=sign, home=path / "built-in")
    return Journal(open_file(path), sign=sign), None, notes


def _opened_shared(path: Path, config: RunConfig) -> tuple[Journal, SharedStore, tuple[str, ...]]:
    store = open_shared(journal_url(path), run=run_digest(config))
    if not Authority.exists(path):
        if store.read():
            raise ConfigError(
                f"{path} has not the keys of this run, which has begun",
                hint="bring them from the first host's machine: atoll keys --help",
            )
        _create(path, config)
    return Journal(store, sign=Authority.load(path).sign), store, ()


def _create(path: Path, config: RunConfig) -> None:
    authority = Authority.create(run=run_digest(config))
    for name in ("host", "built-in"):
        identity = Identity.create()
        certificate = authority.sign_member(identity.public_key, name)
        identity.certify(certificate, authority.certificate)
        identity.save(path / name)
    authority.save(path)  # last: whoever finds it finds the others, too


def _genesis(
    config: RunConfig, dataset: Digest, authority: Authority, built_in: Identity
) -> Genesis:
    return Genesis(
        run=run_digest(config),
        config=canonical(config).decode(),
        dataset=dataset,
        authority=authority.digest,
        public_key=authority.public_key.hex(),
        built_in=built_in.peer_id,
        built_in_key=built_in.public_key.hex(),
        at=wall_s(),
    )


def _compare(path: Path, journal: Journal, config: RunConfig, dataset: Digest) -> None:
    genesis = journal.entries[0].record
    assert isinstance(genesis, Genesis), "a journal begins with its genesis"
    if genesis.run != run_digest(config):
        raise ConfigError(
            f"{path / 'run.toml'} has changed since the run began",
            hint="change it back, or begin another run with it in a new directory",
        )
    if genesis.authority != Authority.load(path).digest:
        raise ConfigError(
            f"the keys in {path} are not those of this run",
            hint="bring them from the first host's machine: atoll keys --help",
        )
    if genesis.dataset != dataset:
        raise ConfigError(
            "the text that the run was begun with has changed",
            hint="restore the files that run.toml names, or begin another run",
        )
