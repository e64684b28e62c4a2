import numpy as np
import pytest

from atoll.data.batches import Batches


@pytest.fixture
def dataset(workshop):
    workshop.write_texts("corpus", num_texts=40)
    (workshop.folder / "book.txt").write_bytes(b"a quick brown fox jumps " * 300)
    return workshop.prepare(workshop.config("corpus", "book.txt", weights=(3.0, 1.0)))


def test_targets_are_the_next_tokens(dataset):
    batch = Batches(dataset, seed=1).batch(0, 20)
    assert {array.dtype for array in batch} == {np.dtype(np.int64)}
    assert {array.shape for array in batch} == {(20, 16)}
    assert np.array_equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])


def test_a_start_token_begins_a_document_and_is_a_target_like_any_other(dataset):
    batch = Batches(dataset, seed=1).batch(0, 60)
    is_start = batch.tokens_BT == dataset.start_token
    assert is_start.any()
    steps = np.diff(batch.documents_BT, axis=1)
    assert np.array_equal(steps, is_start[:, 1:])
    assert np.array_equal(batch.documents_BT[:, 0], is_start[:, 0])
    assert (batch.targets_BT >= 0).all()
    assert (batch.targets_BT == dataset.start_token).any()


def test_an_epoch_has_every_sample_and_the_next_one_another_order(dataset):
    size, fox_size = dataset.num_samples
    batches = Batches(dataset, seed=1)
    rows = [row.tobytes() for row in batches.batch(0, 4 * size).tokens_BT]
    fox = {row.tobytes() for row in dataset.streams["train"][1].gather(np.arange(fox_size))[:, :-1]}
    rows = [row for row in rows if row not in fox]
    first, second = rows[:size], rows[size : 2 * size]
    expected = dataset.streams["train"][0].gather(np.arange(size))[:, :-1]
    assert sorted(first) == sorted(second) == sorted(row.tobytes() for row in expected)
    assert first != second


def test_sources_are_mixed_by_their_weights(dataset):
    batch = Batches(dataset, seed=1).batch(0, 400)
    texts = [dataset.tokenizer.decode(row) for row in batch.tokens_BT]
    assert sum("quick" in text or "jumps" in text for text in texts) == 100


def test_a_batch_does_not_depend_on_where_it_is_cut(dataset):
    batches = Batches(dataset, seed=5)
    whole = batches.batch(10, 50)
    for part, start in ((batches.batch(10, 13), 0), (batches.batch(13, 50), 3)):
        for whole_BT, part_BT in zip(whole, part, strict=True):
            assert np.array_equal(whole_BT[start : start + len(part_BT)], part_BT)


def test_another_seed_is_another_order(dataset):
    tokens = [Batches(dataset, seed=seed).batch(0, 20).tokens_BT for seed in (1, 1, 2)]
    assert np.array_equal(tokens[0], tokens[1])
    assert not np.array_equal(tokens[0], tokens[2])


def test_validation_samples_are_all_there_in_one_order_for_all_seeds(dataset):
    num_samples = dataset.num_validation_samples
    batch = Batches(dataset, seed=1).validation(0, num_samples)
    expected = np.concatenate(
        [
            stream.gather(np.arange(stream.num_samples))[:, :-1]
            for stream in dataset.streams["validation"]
        ]
    )
    found = [row.tobytes() for row in batch.tokens_BT]
    assert sorted(found) == sorted(row.tobytes() for row in expected)
    assert found != [row.tobytes() for row in expected], "sources are mixed"
    part = Batches(dataset, seed=2).validation(3, 7)
    assert np.array_equal(part.targets_BT, batch.targets_BT[3:7])


def test_validation_samples_end(dataset):
    with pytest.raises(AssertionError):
        Batches(dataset, seed=1).validation(0, dataset.num_validation_samples + 1)
