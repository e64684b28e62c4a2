"""The host's directory, and how a run begins in it.

run.toml          what the run is                   authority.pem   signs members and records
journal.sqlite    what happened, for good           host/           the host's own identity
events.jsonl      what happened, for people         built-in/       the built-in member
"""

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from atoll.clock import wall_s
from atoll.config import RunConfig, canonical, run_digest
from atoll.errors import ConfigError, RunError
from atoll.host.journal import Journal
from atoll.ids import Digest
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.net.records import Genesis

JOURNAL_FILE = "journal.sqlite"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """An opened directory: one host process at a time."""

    path: Path
    lock: FileLock
    journal: Journal
    authority: Authority
    identity: Identity
    built_in: Identity

    def close(self) -> None:
        self.journal.close()
        self.lock.release()


def open_run(path: Path, config: RunConfig, *, dataset: Digest) -> RunDirectory:
    """Return the run of this directory, begun now if it is new.

    Raises:
        ConfigError: it was begun with another run.toml, or on other text.
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
    if not (path / JOURNAL_FILE).exists():
        _create(path, config)
    authority = Authority.load(path)
    journal = Journal(path / JOURNAL_FILE, sign=authority.sign)
    built_in = Identity.load(path / "built-in")
    if not journal.entries:
        journal.append([_genesis(config, dataset, authority, built_in)])
    _compare(path, journal, config, dataset)
    return RunDirectory(path, lock, journal, authority, Identity.load(path / "host"), built_in)


def _create(path: Path, config: RunConfig) -> None:
    authority = Authority.create(run=run_digest(config))
    authority.save(path)
    for name in ("host", "built-in"):
        identity = Identity.create()
        certificate = authority.sign_member(identity.public_key, name)
        identity.certify(certificate, authority.certificate)
        identity.save(path / name)


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
    if genesis.dataset != dataset:
        raise ConfigError(
            "the text that the run was begun with has changed",
            hint="restore the files that run.toml names, or begin another run",
        )
