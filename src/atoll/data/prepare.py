"""From a run's sources to its dataset.

    documents --split--> train, validation --tokenise--> one stream of tokens each --cut--> shards

Done once for each corpus: a dataset that was made from the same is found again by its key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Final, TypeAlias

import msgspec
from filelock import FileLock

from atoll.config import DataConfig, RunConfig
from atoll.data import manifest as manifests
from atoll.data.corpus import documents, fingerprint
from atoll.data.manifest import MANIFEST_FILE, SPLITS, TOKENIZER_FILE, Manifest, Shard, Split
from atoll.data.shards import Dataset, StreamWriter, adopt
from atoll.data.split import pieces, portions, split_documents, training_texts
from atoll.data.tokenizer import Tokenizer, check_fits
from atoll.errors import DamagedError, RunError
from atoll.ids import Digest, digest_of

TOKENIZER_CHARACTERS: Final = 2**28  # of each source: more does not make a better tokenizer

Progress: TypeAlias = Callable[[str, int], None]
"""Takes what is going on, and the number of documents that are done."""


def prepare(
    config: RunConfig, *, base_directory: Path, directory: Path, on_progress: Progress
) -> Dataset:
    """Return the dataset of a run, which lies in `directory` under its digest; make it if need be.

    Raises:
        ConfigError: a source or the tokenizer is not as it must be, or there is too little text.
        RunError: the disk is full, or cannot be written to.
    """
    with _explaining(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / ".lock"):
            key = _key(config.data, base_directory=base_directory)
            if dataset := _find(directory, key=key):
                check_fits(dataset.tokenizer, config.model.vocab_size)
                return dataset
            tokenizer = _tokenizer(config.data, base_directory, on_progress)
            check_fits(tokenizer, config.model.vocab_size)
            partial = _emptied(directory / ".partial")
            shards = _write_shards(config.data, base_directory, tokenizer, partial, on_progress)
            (partial / TOKENIZER_FILE).write_bytes(tokenizer.to_bytes())
            manifest = _manifest(config.data, key=key, tokenizer=tokenizer, shards=shards)
            return adopt(partial, manifest=manifest, directory=directory)


@contextmanager
def _explaining(directory: Path) -> Iterator[None]:
    """Turn a failure to write into an error for a person."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write the dataset to {directory}: {error.strerror or error}",
            hint="free some space, or name another folder",
        ) from error


def _key(data: DataConfig, *, base_directory: Path) -> Digest:
    """Return the digest of all that a dataset is made from: of contents, not of names."""
    tokenizer = (
        data.tokenizer.vocab_size
        if data.tokenizer.kind == "train"
        else digest_of(Tokenizer.load(base_directory / data.tokenizer.path).to_bytes())
    )
    sources = [
        (fingerprint(source, base_directory=base_directory), source.weight)
        for source in data.sources
    ]
    parts = [tokenizer, data.sequence_length, data.validation_share, sources]
    return digest_of(msgspec.json.encode(parts))


def _find(directory: Path, *, key: Digest) -> Dataset | None:
    """Return the whole dataset with this key, if there is one."""
    for path in sorted(directory.glob(f"*/{MANIFEST_FILE}")):
        try:
            dataset = Dataset.open(path.parent)
        except DamagedError:
            continue  # it is made again
        if dataset.manifest.key == key and dataset.digest == path.parent.name:
            return dataset
    return None


def _emptied(folder: Path) -> Path:
    if folder.exists():  # left by a process that was killed
        rmtree(folder)
    folder.mkdir()
    return folder


def _split(data: DataConfig, source: int, base_directory: Path) -> Iterator[tuple[Split, str]]:
    texts = documents(data.sources[source], base_directory=base_directory)
    return split_documents(texts, share=data.validation_share)


def _tokenizer(data: DataConfig, base_directory: Path, on_progress: Progress) -> Tokenizer:
    """Return the tokenizer of the run, which never saw the validation text."""
    if data.tokenizer.kind == "file":
        return Tokenizer.load(base_directory / data.tokenizer.path)
    on_progress("training the tokenizer", 0)
    texts = (
        text
        for source in range(len(data.sources))
        for text in training_texts(
            _split(data, source, base_directory), num_characters=TOKENIZER_CHARACTERS
        )
    )
    return Tokenizer.train(texts, vocab_size=data.tokenizer.vocab_size)


def _write_shards(
    data: DataConfig,
    base_directory: Path,
    tokenizer: Tokenizer,
    folder: Path,
    on_progress: Progress,
) -> list[Shard]:
    """Tokenise all sources, write their shards to `folder` and return those."""
    shards = []
    num_documents = 0
    for number, source in enumerate(data.sources):
        streams = {
            split: StreamWriter(
                folder,
                split=split,
                source=number,
                sequence_length=data.sequence_length,
                token_bytes=tokenizer.token_bytes,
            )
            for split in SPLITS
        }
        for portion in portions(pieces(_split(data, number, base_directory))):
            encoded = tokenizer.encode_batch([piece.text for piece in portion])
            for piece, tokens in zip(portion, encoded, strict=True):
                start = [tokenizer.start_token] if piece.starts_document else []
                streams[piece.split].append(start + tokens)
                num_documents += piece.starts_document
            on_progress(f"tokenising {source.name}", num_documents)
        for stream in streams.values():
            shards += stream.finish(name=source.name)
    return shards


def _manifest(data: DataConfig, *, key: Digest, tokenizer: Tokenizer, shards: list[Shard]) -> bytes:
    manifest = Manifest(
        key=key,
        sequence_length=data.sequence_length,
        token_bytes=tokenizer.token_bytes,
        start_token=tokenizer.start_token,
        weights=tuple(source.weight for source in data.sources),
        tokenizer=digest_of(tokenizer.to_bytes()),
        tokenizer_bytes=len(tokenizer.to_bytes()),
        shards=tuple(sorted(shards, key=lambda shard: shard.place)),
    )
    return manifests.to_bytes(manifest)
