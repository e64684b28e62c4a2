import shutil

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tests.unit.data.whole import assert_whole

from atoll.data import shards as module
from atoll.data.manifest import MANIFEST_FILE, blobs_needed
from atoll.data.shards import Dataset, StreamWriter, adopt
from atoll.errors import BadBlobError, ConfigError, DamagedError
from atoll.ids import digest_of


@pytest.fixture
def dataset(workshop) -> Dataset:
    workshop.write_texts("corpus", num_texts=40)
    return workshop.prepare(workshop.config("corpus"))


def test_open_gives_the_dataset_that_was_prepared(dataset):
    opened = Dataset.open(dataset.folder)
    assert opened.digest == dataset.digest == dataset.folder.name
    assert opened.manifest == dataset.manifest
    assert opened.sequence_length == 16
    assert opened.tokenizer.to_bytes() == dataset.tokenizer.to_bytes()
    assert opened.start_token == opened.tokenizer.start_token
    assert_whole(opened)


def test_the_blobs_of_a_dataset_are_files_with_these_digests(dataset):
    blobs = list(dataset.places.items())
    assert blobs[0] == (dataset.digest, dataset.folder / MANIFEST_FILE)
    assert_whole(dataset)
    assert {path for _, path in blobs} == set(dataset.folder.iterdir())


@pytest.mark.parametrize("file", [MANIFEST_FILE, "tokenizer.json", "validation-0-00000.bin"])
def test_a_missing_or_short_file_is_found_when_the_dataset_is_opened(dataset, file):
    path = dataset.folder / file
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedError, match=str(path) if file != MANIFEST_FILE else "manifest"):
        Dataset.open(dataset.folder)
    path.unlink()
    with pytest.raises(DamagedError, match="not a whole dataset") as caught:
        Dataset.open(dataset.folder)
    assert "delete the folder" in caught.value.hint


# --- from another machine ------------------------------------------------------------------------


def fetch(dataset: Dataset, folder):
    """Copy what a peer would fetch by digest into `folder`, and return the manifest."""
    folder.mkdir()
    paths = dataset.places
    manifest = paths[dataset.digest].read_bytes()
    for blob in blobs_needed(manifest):
        shutil.copy(paths[blob.digest], folder / blob.file)
    return manifest


def test_adopt_finishes_a_fetched_dataset(dataset, tmp_path):
    manifest = fetch(dataset, tmp_path / "partial")
    (tmp_path / "theirs").mkdir()
    adopted = adopt(tmp_path / "partial", manifest=manifest, directory=tmp_path / "theirs")
    assert adopted.folder == tmp_path / "theirs" / dataset.digest
    assert adopted.digest == dataset.digest
    assert_whole(adopted)
    assert not (tmp_path / "partial").exists()


def test_adopt_replaces_a_damaged_dataset(dataset, tmp_path):
    manifest = fetch(dataset, tmp_path / "partial")
    (dataset.folder / "tokenizer.json").unlink()
    adopted = adopt(tmp_path / "partial", manifest=manifest, directory=dataset.folder.parent)
    assert (adopted.folder, adopted.digest) == (dataset.folder, dataset.digest)
    assert_whole(adopted)


def test_adopt_refuses_what_is_not_whole(dataset, tmp_path):
    manifest = fetch(dataset, tmp_path / "partial")
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "partial" / "train-0-00000.bin"
    whole = path.read_bytes()
    for content, message in ((whole[:-2], "wrong size"), (whole[:-1] + b"\xff", "is damaged")):
        path.write_bytes(content)
        with pytest.raises(BadBlobError, match=f"train-0-00000.bin .*{message}"):
            adopt(tmp_path / "partial", manifest=manifest, directory=tmp_path / "theirs")
    path.unlink()
    with pytest.raises(BadBlobError, match=r"train-0-00000\.bin is missing"):
        adopt(tmp_path / "partial", manifest=manifest, directory=tmp_path / "theirs")
    with pytest.raises(BadBlobError, match="not the manifest"):
        adopt(tmp_path / "partial", manifest=manifest[:-1], directory=tmp_path / "theirs")
    assert list((tmp_path / "theirs").iterdir()) == []


# --- streams -------------------------------------------------------------------------------------


def write_stream(folder, tokens, *, sequence_length, portion):
    writer = StreamWriter(
        folder, split="train", source=0, sequence_length=sequence_length, token_bytes=2
    )
    for start in range(0, len(tokens), portion):
        writer.append(tokens[start : start + portion])
    return writer.finish(name="corpus")


@settings(deadline=None)
@given(
    num_tokens=st.integers(0, 200),
    sequence_length=st.integers(1, 12),
    portion=st.integers(1, 60),
    shard_tokens=st.integers(1, 50),
)
def test_every_token_is_the_target_of_one_sample(
    tmp_path_factory, num_tokens, sequence_length, portion, shard_tokens
):
    folder = tmp_path_factory.mktemp("shards")
    tokens = list(range(num_tokens))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_TOKENS", shard_tokens)
        if num_tokens <= sequence_length:
            with pytest.raises(ConfigError, match=f"corpus: {num_tokens} tokens"):
                write_stream(folder, tokens, sequence_length=sequence_length, portion=portion)
            return
        shards = write_stream(folder, tokens, sequence_length=sequence_length, portion=portion)
    assert [shard.index for shard in shards] == [*range(len(shards))]
    targets = []
    for shard in shards:
        content = (folder / shard.file).read_bytes()
        assert digest_of(content) == shard.digest
        stored = np.frombuffer(content, "<u2")
        assert len(stored) == shard.num_samples * sequence_length + 1
        assert shard.num_samples <= max(1, shard_tokens // sequence_length)
        targets += stored[1:].tolist()
    assert targets == tokens[1 : (num_tokens - 1) // sequence_length * sequence_length + 1]


def test_samples_are_gathered_across_shards(workshop, monkeypatch):
    workshop.write_texts("corpus", num_texts=40)
    monkeypatch.setattr(module, "SHARD_TOKENS", 16 * 5)
    dataset = workshop.prepare(workshop.config("corpus"))
    train = [shard for shard in dataset.manifest.shards if shard.split == "train"]
    assert len(train) > 3
    stored = [np.frombuffer((dataset.folder / s.file).read_bytes(), "<u2") for s in train]
    expected = [
        tokens[start : start + 17]
        for shard, tokens in zip(train, stored, strict=True)
        for start in range(0, 16 * shard.num_samples, 16)
    ]
    (stream,) = dataset.streams["train"]
    assert stream.num_samples == len(expected) == dataset.num_samples[0]
    backwards = np.arange(len(expected))[::-1]
    gathered = stream.gather(backwards)
    assert gathered.dtype == np.int64
    assert np.array_equal(gathered, np.array(expected)[backwards])
