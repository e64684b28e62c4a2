"""The newest committed state of a run, out of its host's directory or out of a peer's."""

from dataclasses import dataclass
from pathlib import Path

from atoll.config import RunConfig, run_digest
from atoll.data.shards import Dataset
from atoll.errors import ConfigError
from atoll.outer.saved import read_saved, saved_rounds
from atoll.outer.state import PeerState
from atoll.peer.home import DATASET_FILE, read_run_file


@dataclass(frozen=True, slots=True, eq=False)
class Newest:
    config: RunConfig
    state: PeerState
    dataset: Dataset  # whose tokenizer the model reads with


def open_newest(path: Path, *, cache: Path) -> Newest:
    """Return the newest state in this directory; a run.toml stands for its directory.

    Raises:
        ConfigError: there is none, or its dataset is not in the cache.
        DamagedError: the state is not what was saved.
    """
    directory = path.parent if path.name == "run.toml" else path
    is_host = (directory / "run.toml").exists()
    home = directory / "built-in" if is_host else directory
    if not (home / "run.json").exists():
        raise ConfigError(
            f"no trained model in {directory}",
            hint="name the directory of a run that has begun, or of a peer",
        )
    run_file = read_run_file(home)
    rounds = saved_rounds(home / "states")
    if not rounds:
        raise ConfigError(
            f"no committed state in {home / 'states'}", hint="wait for the first round"
        )
    state, _ = read_saved(home / "states", rounds[-1], run=run_digest(run_file.config))
    return Newest(run_file.config, state, _dataset(home, cache))


def _dataset(home: Path, cache: Path) -> Dataset:
    digest = (home / DATASET_FILE).read_text()
    if not (cache / digest).is_dir():
        raise _not_cached(cache)
    return Dataset.open(cache / digest)


def _not_cached(cache: Path) -> ConfigError:
    return ConfigError(
        f"the dataset of this run is not in {cache}, so its tokenizer is not at hand",
        hint="name the folder that the host or the peer was started with: --cache FOLDER",
    )
