"""A dataset: a folder of tokenised shards that never changes, named by the digest of its manifest.

    DIRECTORY/DIGEST/manifest.json  tokenizer.json  train-0-00000.bin  validation-0-00000.bin  ...

It is whole or it is not there: the files are written beside, flushed to the disk, and renamed.

Shapes: N samples, S = sequence_length + 1 tokens of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from shutil import rmtree

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from atoll.data import manifest as manifests
from atoll.data.manifest import MANIFEST_FILE, SPLITS, TOKENIZER_FILE, Manifest, Shard, Split
from atoll.data.tokenizer import Tokenizer
from atoll.errors import BadBlobError, ConfigError, DamagedError
from atoll.ids import Digest, digest_of
from atoll.system import sync

SHARD_TOKENS = 2**24  # 32 MiB of uint16: what a home connection fetches in half a minute
DAMAGED_HINT = "delete the folder; it is made or fetched again"


@dataclass(frozen=True, eq=False)
class Dataset:
    folder: Path
    digest: Digest
    manifest: Manifest

    @staticmethod
    def open(folder: Path) -> "Dataset":
        """Return the dataset in this folder, whose files all have the right sizes.

        Raises:
            DamagedError: the folder is not a whole dataset.
        """
        try:
            content = (folder / MANIFEST_FILE).read_bytes()
            for blob in manifests.blobs_needed(content):
                num_bytes = (folder / blob.file).stat().st_size
                if num_bytes != blob.num_bytes:
                    raise DamagedError(
                        f"{folder / blob.file} has {num_bytes} bytes instead of {blob.num_bytes}",
                        hint=DAMAGED_HINT,
                    )
        except (OSError, BadBlobError) as error:
            raise DamagedError(
                f"not a whole dataset: {folder}: {error}", hint=DAMAGED_HINT
            ) from error
        return Dataset(folder, digest_of(content), manifests.from_bytes(content))

    @property
    def sequence_length(self) -> int:
        return self.manifest.sequence_length

    @property
    def start_token(self) -> int:
        return self.manifest.start_token

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each source in the mixture, up to a common factor."""
        return self.manifest.weights

    @property
    def num_samples(self) -> tuple[int, ...]:
        """Training samples of each source."""
        return tuple(stream.num_samples for stream in self.streams["train"])

    @property
    def num_validation_samples(self) -> int:
        """Validation samples of all sources together."""
        return sum(stream.num_samples for stream in self.streams["validation"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / TOKENIZER_FILE)

    @cached_property
    def streams(self) -> "dict[Split, list[Stream]]":
        """The samples of each source, by split."""
        return {
            split: [Stream(self, split, source) for source in range(len(self.weights))]
            for split in SPLITS
        }

    @cached_property
    def places(self) -> dict[Digest, Path]:
        """Where all blobs are that another machine needs, the manifest first."""
        content = (self.folder / MANIFEST_FILE).read_bytes()
        needed = {b.digest: self.folder / b.file for b in manifests.blobs_needed(content)}
        return {self.digest: self.folder / MANIFEST_FILE, **needed}


class Stream:
    """The packed samples of one source and split, over all their shards."""

    def __init__(self, dataset: Dataset, split: Split, source: int) -> None:
        place = (split, source)
        shards = [s for s in dataset.manifest.shards if (s.split, s.source) == place]
        self._sequence_length = dataset.sequence_length
        self._tokens = [
            np.memmap(
                dataset.folder / shard.file, dtype=f"<u{dataset.manifest.token_bytes}", mode="r"
            )
            for shard in shards
        ]
        self._starts = np.array(list(accumulate((s.num_samples for s in shards), initial=0)))

    @property
    def num_samples(self) -> int:
        return int(self._starts[-1])

    def gather(self, sample_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens of these samples, of shape (N, S)."""
        tokens_NS = np.empty((len(sample_N), self._sequence_length + 1), np.int64)
        shard_N = np.searchsorted(self._starts, sample_N, side="right") - 1
        first_N = (sample_N - self._starts[shard_N]) * self._sequence_length
        place_S = np.arange(self._sequence_length + 1)
        for shard in np.unique(shard_N):
            here_N = shard_N == shard
            tokens_NS[here_N] = self._tokens[shard][first_N[here_N, None] + place_S]
        return tokens_NS


class StreamWriter:
    """Cuts the tokens of one source and split into shards, as they come.

    The tokens after the last whole sample are dropped.
    """

    def __init__(
        self, folder: Path, *, split: Split, source: int, sequence_length: int, token_bytes: int
    ) -> None:
        self._folder = folder
        self._split: Split = split
        self._source = source
        self._sequence_length = sequence_length
        self._dtype = np.dtype(f"<u{token_bytes}")
        self._pending: list[NDArray[np.unsignedinteger]] = []
        self._num_pending = 0
        self._shards: list[Shard] = []

    def append(self, tokens: Sequence[int]) -> None:
        self._pending.append(np.array(tokens, self._dtype))
        self._num_pending += len(tokens)
        num_samples = max(1, SHARD_TOKENS // self._sequence_length)
        while self._num_pending > num_samples * self._sequence_length:
            self._write(num_samples)

    def finish(self, *, name: str) -> list[Shard]:
        """Return the shards, after writing what is left; `name` is what an error calls the source.

        Raises:
            ConfigError: there is not a single sample.
        """
        if (num_samples := (self._num_pending - 1) // self._sequence_length) > 0:
            self._write(num_samples)
        if not self._shards:
            raise ConfigError(
                f"too little text in the source {name}: {self._num_pending} tokens for "
                f"{self._split}, where one sample has {self._sequence_length + 1}",
                hint="add text, set data.validation_share higher, or data.sequence_length lower",
            )
        return self._shards

    def _write(self, num_samples: int) -> None:
        tokens = np.concatenate(self._pending)
        last = num_samples * self._sequence_length
        content = tokens[: last + 1].tobytes()
        shard = Shard(
            split=self._split,
            source=self._source,
            index=len(self._shards),
            num_samples=num_samples,
            digest=digest_of(content),
        )
        (self._folder / shard.file).write_bytes(content)
        self._shards.append(shard)
        self._pending = [tokens[last:]]
        self._num_pending = len(tokens) - last


def file_digest(path: Path) -> Digest:
    """Return the digest of a file's content, read on all cores."""
    return Digest(blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest())


def adopt(partial: Path, *, manifest: bytes, directory: Path) -> Dataset:
    """Finish the folder `partial`, which has every blob of the manifest under its file name.

    Returns the dataset, which then lies in `directory` under its digest. `partial` is gone.

    Raises:
        BadBlobError: the bytes are no manifest, or a blob is missing or not the one it names.
    """
    for blob in manifests.blobs_needed(manifest):
        path = partial / blob.file
        if not path.is_file() or path.stat().st_size != blob.num_bytes:
            raise BadBlobError(f"{blob.file} is missing or has the wrong size")
        if file_digest(path) != blob.digest:
            raise BadBlobError(f"{blob.file} is damaged")
        sync(path)
    (partial / MANIFEST_FILE).write_bytes(manifest)
    sync(partial / MANIFEST_FILE)
    sync(partial)
    folder = directory / digest_of(manifest)
    rmtree(folder, ignore_errors=True)  # what was there is the same, or damaged
    partial.rename(folder)
    sync(directory)
    return Dataset.open(folder)
