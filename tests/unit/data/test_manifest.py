import json
from contextlib import suppress

import pytest
from hypothesis import given, settings, strategies as st

from atoll.data.manifest import Blob, Manifest, Shard, blobs_needed, from_bytes, to_bytes
from atoll.errors import BadBlobError
from atoll.ids import Digest, digest_of


def digest(name: str) -> Digest:
    return digest_of(name.encode())


def shard(split: str, source: int, index: int, *, num_samples: int = 3) -> Shard:
    name = f"{split}{source}{index}"
    return Shard(
        split=split, source=source, index=index, num_samples=num_samples, digest=digest(name)
    )


MANIFEST = Manifest(
    key=digest("key"),
    sequence_length=8,
    token_bytes=2,
    start_token=0,
    weights=(1.0, 0.5),
    tokenizer=digest("tokenizer"),
    tokenizer_bytes=1000,
    shards=(
        shard("train", 0, 0),
        shard("train", 0, 1),
        shard("train", 1, 0),
        shard("validation", 0, 0),
        shard("validation", 1, 0),
    ),
)
CONTENT = to_bytes(MANIFEST)


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(CONTENT) | fields, separators=(",", ":")).encode()


def with_shards(*shards: Shard) -> bytes:
    return changed(shards=json.loads(json.dumps([_plain(one) for one in shards])))


def _plain(one: Shard) -> dict[str, object]:
    return {field: getattr(one, field) for field in one.__struct_fields__}


def test_a_manifest_comes_back():
    assert from_bytes(CONTENT) == MANIFEST


def test_the_bytes_of_a_manifest_do_not_change():
    """They name the dataset: other bytes would be another dataset."""
    assert digest_of(CONTENT) == "fb26cef974a83c8f51a59bee924be1a7d4c1f8d024884fda3b6d77e49d1e3a72"


def test_the_blobs_of_a_manifest_are_named_by_their_places():
    tokenizer, first, second, *_, last = blobs_needed(CONTENT)
    assert tokenizer == Blob(digest("tokenizer"), "tokenizer.json", 1000)
    assert first == Blob(digest("train00"), "train-0-00000.bin", (3 * 8 + 1) * 2)
    assert second.file == "train-0-00001.bin"
    assert last == Blob(digest("validation10"), "validation-1-00000.bin", 50)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b"\xff{}",
        CONTENT + b"\n",
        b" " + CONTENT,
        changed(extra=1),
        changed(format=2),
        changed(key="../../etc/passwd"),
        changed(tokenizer="0" * 63),
        changed(sequence_length=0),
        changed(token_bytes=3),
        changed(start_token=-1),
        changed(weights=[]),
        changed(weights=[1.0, 0]),
        changed(weights=[1.0, -1.0]),
        changed(tokenizer_bytes=2**40),
        changed(shards=[]),
        with_shards(*MANIFEST.shards[1:]),
        with_shards(*MANIFEST.shards[:-1]),
        with_shards(*MANIFEST.shards, shard("validation", 2, 0)),
        with_shards(*MANIFEST.shards, shard("validation", 1, 2)),
        with_shards(*reversed(MANIFEST.shards)),
        with_shards(MANIFEST.shards[0], *MANIFEST.shards),
        with_shards(shard("train", 0, 0, num_samples=2**30), *MANIFEST.shards[1:]),
        with_shards(shard("../train", 0, 0), *MANIFEST.shards[1:]),
    ],
)
def test_what_is_no_manifest_is_a_bad_blob(content):
    with pytest.raises(BadBlobError, match="not the manifest of a dataset"):
        blobs_needed(content)


def test_an_unchanged_manifest_is_the_ground_of_the_cases_above():
    assert changed() == CONTENT
    assert with_shards(*MANIFEST.shards) == CONTENT


@settings(deadline=None)
@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_a_damaged_manifest_is_a_bad_blob_or_a_manifest(place, flip):
    damaged = bytearray(CONTENT)
    damaged[place] ^= flip
    with suppress(BadBlobError):
        assert all("/" not in blob.file for blob in blobs_needed(bytes(damaged)))
