"""Where things are on this machine, unless the user says otherwise."""

import os
from pathlib import Path

from atoll.errors import ConfigError


def cache_directory() -> Path:
    """Return where tokenised datasets are kept, for all runs of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "atoll" / "datasets"


def peer_directory(authority: str) -> Path:
    """Return where this machine's peer of the run with this authority lives."""
    return _peers() / authority[:16]


def peer_directories() -> list[Path]:
    """Return where peers of this machine live that have no --dir of their own."""
    return sorted(path.parent for path in _peers().glob("*/run.json"))


def _peers() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "atoll"


def assist_directory() -> Path:
    """Return where this machine keeps what it found out when it assisted a peer."""
    return _peers() / "assist"


def reader_directory(authority: str) -> Path:
    """Return where the member of the run lives that only reads along, to talk to its model."""
    peer = peer_directory(authority)
    return peer.with_name(f"{peer.name}-reader")


def directory_of(path: Path) -> Path:
    """Return the directory that is meant by a path: a run.toml stands for the one it is in."""
    return path.parent if path.suffix == ".toml" else path


def run_directory(path: Path) -> Path:
    """Return the directory of a run that is named by it or by its run.toml.

    Raises:
        ConfigError: there is no run, or the file is not what it was begun with.
    """
    directory = directory_of(path)
    if path.suffix == ".toml" and path.name != "run.toml":
        raise ConfigError(
            f"{path} is not the run.toml of a run",
            hint="name the run's directory; a file becomes a run as the run.toml of its own",
        )
    if not (directory / "run.toml").is_file() and (directory / "run.json").is_file():
        raise ConfigError(
            f"{directory} is the directory of a peer, not that of the run, which is at its host",
            hint=f"what the peer does: atoll follow {directory}; it goes on with: atoll join --dir "
            f"{directory}; its model: atoll generate, chat, eval or export",
        )
    if not (directory / "run.toml").is_file():
        raise ConfigError(
            f"no run in {directory}: it has no run.toml", hint="begin one with: atoll new NAME"
        )
    return directory
