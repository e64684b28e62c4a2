"""The newest committed state of a run, out of its host's directory or out of a peer's."""

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from atoll.cli.places import directory_of
from atoll.config import RunConfig, run_digest
from atoll.data.manifest import TOKENIZER_FILE
from atoll.data.shards import Dataset
from atoll.errors import ConfigError
from atoll.host.overview import overview
from atoll.host.stores import read_journal
from atoll.ids import Digest
from atoll.model.card import Contributor, Origin
from atoll.net.records import Committed, Record
from atoll.outer.saved import read_saved, saved_rounds
from atoll.outer.state import PeerState
from atoll.peer.home import DATASET_FILE, read_run_file


@dataclass(frozen=True, eq=False)
class Newest:
    config: RunConfig
    state: PeerState
    digest: Digest  # of the state
    tokenizer: Path  # the `tokenizer.json` that the model reads with
    dataset_folder: Path  # of whoever has the samples, too

    @cached_property
    def dataset(self) -> Dataset:
        """The samples.

        Raises:
            ConfigError: they are not in the cache.
        """
        if not self.dataset_folder.is_dir():
            raise _not_cached(self.dataset_folder.parent, "which has the samples")
        return Dataset.open(self.dataset_folder)


def open_newest(path: Path, *, cache: Path) -> Newest:
    """Return the newest state in this directory; a run.toml stands for its directory.

    Raises:
        ConfigError: there is none, or no tokenizer is at hand.
        DamagedError: the state is not what was saved.
    """
    home = home_of(path)
    rounds = saved_rounds(home / "states")
    if not rounds:
        raise ConfigError(
            f"no committed state in {home / 'states'}", hint="wait for the first round"
        )
    config = read_run_file(home).config
    state, digest = read_saved(home / "states", rounds[-1], run=run_digest(config))
    dataset_folder = cache / (home / DATASET_FILE).read_text()
    return Newest(config, state, digest, _tokenizer(home, dataset_folder), dataset_folder)


def home_of(path: Path) -> Path:
    """Return the directory of the member whose states are meant by that of a run, or of a member.

    Raises:
        ConfigError: there is none.
    """
    directory = directory_of(path)
    is_host = (directory / "run.toml").exists()
    home = directory / "built-in" if is_host else directory
    if not (home / "run.json").exists():
        raise ConfigError(
            f"no trained model in {directory}",
            hint="name the directory of a run that has begun, or of a peer",
        )
    return home


def origin_of(newest: Newest, path: Path) -> Origin:
    """Return how the state came to be; only the host's directory knows the contributors."""

    def is_before(record: Record) -> bool:  # the run may go on meanwhile
        return not (isinstance(record, Committed) and record.round > newest.state.round)

    directory = directory_of(path)
    contributors = None
    if (directory / "run.toml").exists():
        view = overview(takewhile(is_before, (e.record for e in read_journal(directory))), ())
        contributors = [
            Contributor(peer.name, peer.rounds, peer.num_tokens)
            for peer in view.peers
            if peer.rounds
        ]
    rounds = newest.config.sync.rounds
    return Origin(f"{newest.state.round} of {rounds}", newest.digest, contributors)


def _tokenizer(home: Path, dataset_folder: Path) -> Path:
    own = home / TOKENIZER_FILE  # of a member that only reads along
    if own.exists():
        return own
    if not dataset_folder.is_dir():
        raise _not_cached(dataset_folder.parent, "so its tokenizer is not at hand")
    return dataset_folder / TOKENIZER_FILE


def _not_cached(cache: Path, consequence: str) -> ConfigError:
    return ConfigError(
        f"the dataset of this run is not in {cache}, {consequence}",
        hint="name the folder that the host or the peer was started with: --cache FOLDER",
    )
