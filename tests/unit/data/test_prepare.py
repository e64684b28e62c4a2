import errno

import msgspec
import numpy as np
import pytest
from tests.unit.data.whole import assert_whole

from atoll.config import TokenizerConfig
from atoll.data import prepare as module, split
from atoll.data.corpus import documents
from atoll.data.shards import Dataset
from atoll.data.tokenizer import Tokenizer
from atoll.errors import ConfigError, RunError


def stream_text(dataset: Dataset, split_name: str, *, source: int = 0) -> str:
    """Return the text of all whole samples, with the start tokens as line breaks."""
    shards = [s for s in dataset.manifest.shards if (s.split, s.source) == (split_name, source)]
    parts = [
        np.fromfile(dataset.folder / s.file, f"<u{dataset.manifest.token_bytes}") for s in shards
    ]
    tokens = np.concatenate([parts[0][:1], *(part[1:] for part in parts)])
    starts = np.flatnonzero(tokens == dataset.start_token)
    assert starts[0] == 0
    return "\n".join(dataset.tokenizer.decode(d) for d in np.split(tokens, starts[1:]))


def test_the_shards_hold_the_documents_each_after_a_start_token(workshop):
    workshop.write_texts("corpus", num_texts=40)
    config = workshop.config("corpus")
    dataset = workshop.prepare(config)
    texts = documents(config.data.sources[0], base_directory=workshop.folder)
    expected = {"train": [], "validation": []}
    for name, text in split.split_documents(texts, share=0.1):
        expected[name].append(text)
    for name, parts in expected.items():
        whole = "\n".join(parts)
        found = stream_text(dataset, name).rstrip("\ufffd")
        assert whole.startswith(found)
        assert len(whole) - len(found) < 100, "only the end of the last document is cut"


def test_a_single_text_file_is_split_by_position(workshop):
    text = " ".join(workshop.text(number) for number in range(40))
    (workshop.folder / "book.txt").write_bytes(text.encode())
    dataset = workshop.prepare(workshop.config("book.txt"))
    assert text.startswith(stream_text(dataset, "train").rstrip("\ufffd"))
    assert stream_text(dataset, "validation")[:50] in text[-len(text) // 10 - 1 :]
    assert "\n" not in stream_text(dataset, "validation")


def test_long_documents_are_tokenised_in_pieces_and_start_once(workshop, monkeypatch):
    monkeypatch.setattr(split, "PIECE_CHARACTERS", 50)
    workshop.write_texts("corpus", num_texts=40)
    dataset = workshop.prepare(workshop.config("corpus"))
    found = stream_text(dataset, "train")
    assert all(line.startswith("Document ") for line in found.split("\n"))


def test_equal_corpora_give_equal_datasets_wherever_they_lie(workshop, tmp_path_factory):
    workshop.write_texts("here", num_texts=30)
    workshop.write_texts("there", num_texts=30)
    first = workshop.prepare(workshop.config("here"))
    manifest = first.manifest
    workshop.folder = tmp_path_factory.mktemp("other")
    workshop.write_texts("there", num_texts=30)
    second = workshop.prepare(workshop.config("there"))
    assert second.folder != first.folder
    assert (second.digest, second.manifest) == (first.digest, manifest)


def test_what_was_prepared_once_is_reused(workshop):
    workshop.write_texts("corpus", num_texts=30)
    told = []
    first = workshop.prepare(workshop.config("corpus"), progress=told)
    assert told[0] == ("training the tokenizer", 0)
    assert told[-1] == ("tokenising corpus", 30)
    told = []
    again = workshop.prepare(workshop.config("corpus"), progress=told)
    assert (again.digest, told) == (first.digest, [])


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_length": 17},
        {"validation_share": 0.2},
        {"tokenizer": TokenizerConfig(vocab_size=280)},
        {"weights": (2.0,)},
    ],
)
def test_another_setting_is_another_dataset(workshop, change):
    workshop.write_texts("corpus", num_texts=30)
    first = workshop.prepare(workshop.config("corpus"))
    second = workshop.prepare(workshop.config("corpus", **change))
    assert first.digest != second.digest
    assert {path.name for path in first.folder.parent.iterdir() if len(path.name) == 64} == {
        first.digest,
        second.digest,
    }


def test_changed_text_is_another_dataset(workshop):
    workshop.write_texts("corpus", num_texts=30)
    first = workshop.prepare(workshop.config("corpus"))
    (workshop.folder / "corpus" / "0003.txt").write_text("something else")
    assert workshop.prepare(workshop.config("corpus")).digest != first.digest


def test_a_damaged_dataset_is_made_again(workshop):
    workshop.write_texts("corpus", num_texts=30)
    first = workshop.prepare(workshop.config("corpus"))
    (first.folder / "train-0-00000.bin").write_bytes(b"short")
    (first.folder.parent / ("0" * 64)).mkdir()
    again = workshop.prepare(workshop.config("corpus"))
    assert again.digest == first.digest
    assert_whole(again)


def test_what_a_killed_process_left_is_no_hindrance(workshop):
    workshop.write_texts("corpus", num_texts=30)
    partial = workshop.folder / "datasets" / ".partial"
    partial.mkdir(parents=True)
    (partial / "train-0-00009.bin").write_bytes(b"half")
    dataset = workshop.prepare(workshop.config("corpus"))
    assert not partial.exists()
    assert not (dataset.folder / "train-0-00009.bin").exists()


def test_several_sources_keep_their_samples_apart(workshop):
    workshop.write_texts("corpus", num_texts=30)
    (workshop.folder / "book.txt").write_bytes(b"a quick brown fox " * 300)
    dataset = workshop.prepare(workshop.config("corpus", "book.txt", weights=(3.0, 1.0)))
    assert dataset.weights == (3.0, 1.0)
    assert len(dataset.num_samples) == 2
    assert "fox" in stream_text(dataset, "train", source=1)
    assert "fox" not in stream_text(dataset, "train", source=0)
    in_manifest = [s.num_samples for s in dataset.manifest.shards if s.split == "validation"]
    assert dataset.num_validation_samples == sum(in_manifest)


def test_a_tokenizer_from_a_file_is_taken_as_it_is(workshop):
    workshop.write_texts("corpus", num_texts=30)
    tokenizer = Tokenizer.train(["some other text"], vocab_size=260)
    tokenizer.save(workshop.folder / "my.json")
    config = workshop.config("corpus", tokenizer=TokenizerConfig(kind="file", path="my.json"))
    dataset = workshop.prepare(config)
    assert dataset.tokenizer.to_bytes() == tokenizer.to_bytes()
    Tokenizer.train(["yet another text"], vocab_size=260).save(workshop.folder / "my.json")
    assert workshop.prepare(config).digest != dataset.digest


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused_also_on_reuse(workshop):
    workshop.write_texts("corpus", num_texts=30)
    config = workshop.config("corpus")
    small = workshop.config("corpus", model=msgspec.structs.replace(config.model, vocab_size=299))
    for _ in range(2):
        with pytest.raises(ConfigError, match="300 tokens, the model a vocabulary of 299"):
            workshop.prepare(small)
        workshop.prepare(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one", "too little text in the source a.txt: . tokens for train"),
        ("one two three " * 20, "a.txt: .* tokens for validation, where one sample has 17"),
    ],
)
def test_too_little_text_is_an_error_that_says_how_little(workshop, content, message):
    (workshop.folder / "a.txt").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        workshop.prepare(workshop.config("a.txt"))
    assert "validation_share" in caught.value.hint


def test_a_missing_source_is_an_error(workshop):
    with pytest.raises(ConfigError, match="no such file or folder"):
        workshop.prepare(workshop.config("missing"))


def test_a_directory_that_cannot_be_written_is_an_error_of_the_run(workshop):
    workshop.write_texts("corpus", num_texts=30)
    (workshop.folder / "datasets").write_text("a file is in the way")
    with pytest.raises(RunError, match=r"cannot write the dataset to .*datasets"):
        workshop.prepare(workshop.config("corpus"))


def test_a_full_disk_is_an_error_of_the_run_and_leaves_nothing(workshop, monkeypatch):
    class FullDisk(module.StreamWriter):
        def append(self, tokens):
            raise OSError(errno.ENOSPC, "No space left on device")

    workshop.write_texts("corpus", num_texts=30)
    with monkeypatch.context() as patch:
        patch.setattr(module, "StreamWriter", FullDisk)
        with pytest.raises(RunError, match="No space left on device") as caught:
            workshop.prepare(workshop.config("corpus"))
    assert "free some space" in caught.value.hint
    assert workshop.prepare(workshop.config("corpus")).num_samples[0] > 0
