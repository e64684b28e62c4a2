"""Whether a dataset is what its digests say."""

from atoll.data.shards import Dataset
from atoll.ids import digest_of


def assert_whole(dataset: Dataset) -> None:
    """Read every file, however it came here, and compare digests."""
    for digest, path in dataset.places.items():
        assert digest_of(path.read_bytes()) == digest, path.name
