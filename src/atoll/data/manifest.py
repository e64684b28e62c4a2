"""The manifest of a dataset: which shards it has. Its digest is the dataset's name.

A manifest says nothing of paths, machines or times, so equal corpora give equal bytes everywhere.
File names follow from the shards' places: none is ever read from bytes that come from the network.
"""

from itertools import groupby
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from atoll.errors import BadBlobError
from atoll.ids import Digest
from atoll.units import GIB, MIB

MANIFEST_FILE: Final = "manifest.json"
TOKENIZER_FILE: Final = "tokenizer.json"
MAX_SHARD_BYTES: Final = GIB
MAX_TOKENIZER_BYTES: Final = 256 * MIB

Split: TypeAlias = Literal["train", "validation"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation")
Index: TypeAlias = Annotated[int, Meta(ge=0, lt=2**31)]
Count: TypeAlias = Annotated[int, Meta(gt=0, lt=2**31)]


class Shard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consecutive samples of one source, as little-endian tokens.

    A sample begins with the last token of the one before, so the file has
    `num_samples * sequence_length + 1` tokens, and each token is the target of one sample only.
    """

    split: Split
    source: Index
    index: Index
    num_samples: Count
    digest: Digest

    @property
    def file(self) -> str:
        return f"{self.split}-{self.source}-{self.index:05}.bin"

    @property
    def place(self) -> tuple[int, int, int]:
        return SPLITS.index(self.split), self.source, self.index


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`key` is the digest of what the dataset was made from; `weights` has one for each source."""

    format: Literal[1] = 1
    key: Digest
    sequence_length: Annotated[int, Meta(gt=0, le=2**24)]
    token_bytes: Literal[2, 4]
    start_token: Index
    weights: Annotated[
        tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=1, max_length=1000)
    ]
    tokenizer: Digest
    tokenizer_bytes: Annotated[int, Meta(gt=0, le=MAX_TOKENIZER_BYTES)]
    shards: tuple[Shard, ...]

    def shard_bytes(self, shard: Shard) -> int:
        return (shard.num_samples * self.sequence_length + 1) * self.token_bytes


class Blob(NamedTuple):
    digest: Digest
    file: str
    num_bytes: int


def to_bytes(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="deterministic")


def from_bytes(content: bytes) -> Manifest:
    """Parse a manifest, which may be any bytes at all.

    Raises:
        BadBlobError: they are not a manifest as `to_bytes` writes it.
    """
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise BadBlobError(f"not the manifest of a dataset: {error}") from error
    if problem := _problem(manifest):
        raise BadBlobError(f"not the manifest of a dataset: {problem}")
    if to_bytes(manifest) != content:
        raise BadBlobError("not the manifest of a dataset: not in canonical form")
    return manifest


def _problem(manifest: Manifest) -> str:
    """Return what is wrong with the shards; empty: nothing."""
    if any(manifest.shard_bytes(shard) > MAX_SHARD_BYTES for shard in manifest.shards):
        return f"a shard of more than {MAX_SHARD_BYTES} bytes"
    streams = []
    for stream, shards in groupby(manifest.shards, key=lambda shard: shard.place[:2]):
        streams.append(stream)
        if any(shard.index != index for index, shard in enumerate(shards)):
            return "shards that do not follow each other"
    sources = range(len(manifest.weights))
    if streams != [(split, source) for split in range(len(SPLITS)) for source in sources]:
        return "a source without shards, or shards without a source"
    return ""


def blobs_needed(content: bytes) -> list[Blob]:
    """Return the blobs of the dataset with this manifest, without the manifest itself.

    Raises:
        BadBlobError: the bytes are not a manifest.
    """
    manifest = from_bytes(content)
    tokenizer = Blob(manifest.tokenizer, TOKENIZER_FILE, manifest.tokenizer_bytes)
    shards = (Blob(s.digest, s.file, manifest.shard_bytes(s)) for s in manifest.shards)
    return [tokenizer, *shards]
