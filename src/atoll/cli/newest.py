"""The newest committed state of a run, out of its host's directory or out of a peer's."""

from dataclasses import dataclass
from pathlib import Path

from atoll.config import RunConfig, run_digest
from atoll.data.shards import Dataset
from atoll.errors import ConfigError, DamagedError
from atoll.host.journal import read_entries
from atoll.host.setup import JOURNAL_FILE
from atoll.ids import Digest
from atoll.net.records import Genesis
from atoll.outer.saved import read_saved, saved_rounds
from atoll.outer.state import PeerState
from atoll.peer.home import RunFile, read_run_file


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
    if is_host:
        dataset = _dataset(cache, _dataset_digest(directory))
    else:
        dataset = _fitting_dataset(cache, run_file)
    return Newest(run_file.config, state, dataset)


def _dataset_digest(directory: Path) -> Digest:
    genesis = next(read_entries(directory / JOURNAL_FILE)).record
    assert isinstance(genesis, Genesis), "a journal begins with its genesis"
    return genesis.dataset


def _dataset(cache: Path, digest: Digest) -> Dataset:
    if not (cache / digest).is_dir():
        raise _not_cached(cache)
    return Dataset.open(cache / digest)


def _fitting_dataset(cache: Path, run_file: RunFile) -> Dataset:
    """Return the only dataset that a peer of this run can have trained on.

    A peer's directory does not say which that was; what counts here is the tokenizer.
    """
    data = run_file.config.data
    weights = tuple(source.weight for source in data.sources)
    found: dict[Digest, Dataset] = {}
    for folder in cache.iterdir() if cache.is_dir() else ():
        try:
            dataset = Dataset.open(folder)
        except DamagedError:
            continue
        if (dataset.sequence_length, dataset.weights) == (data.sequence_length, weights):
            found[dataset.manifest.tokenizer] = dataset
    if not found:
        raise _not_cached(cache)
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} datasets in {cache} may be that of this run",
            hint="name the host's directory instead of the peer's, or another folder with --cache",
        )
    return next(iter(found.values()))


def _not_cached(cache: Path) -> ConfigError:
    return ConfigError(
        f"the dataset of this run is not in {cache}, so its tokenizer is not at hand",
        hint="name the folder that the host or the peer was started with: --cache FOLDER",
    )
