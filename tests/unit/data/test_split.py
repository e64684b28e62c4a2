from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings, strategies as st

from atoll.data import split as module
from atoll.data.split import Piece, pieces, portions, split_documents, training_texts

TEXTS = [f"text number {number}" for number in range(2000)]


def splits(texts, *, share):
    return list(split_documents(texts, share=share))


def test_about_the_share_is_for_validation():
    counts = Counter(split for split, _ in splits(TEXTS, share=0.05))
    assert 70 < counts["validation"] < 130
    assert counts["train"] + counts["validation"] == 2000


@settings(deadline=None)
@given(st.integers(2, 400), st.floats(0.003, 0.9))
def test_each_split_has_a_document_and_together_they_have_all_text(num_texts, share):
    found = splits(TEXTS[:num_texts], share=share)
    assert {split for split, _ in found} == {"train", "validation"}
    assert "".join(text for _, text in found) == "".join(TEXTS[:num_texts])


def test_the_split_of_a_text_does_not_depend_on_the_other_texts():
    before = {text: split for split, text in splits(TEXTS[:1000], share=0.1)}
    after = {text: split for split, text in splits(TEXTS[:10] + TEXTS[500:], share=0.1)}
    moved = [text for text in before if after.get(text, before[text]) != before[text]]
    assert len(moved) <= 2  # the one in the first ten whose hash is least, or greatest


def test_copies_of_a_text_stay_together():
    found = splits(TEXTS[:300] * 2, share=0.1)
    by_text = {text: {split for split, other in found if other == text} for text in TEXTS[:300]}
    assert all(len(where) == 1 for where in by_text.values())


def test_the_end_of_each_of_few_documents_is_for_validation():
    assert splits(["a" * 90 + "b" * 10], share=0.1) == [
        ("train", "a" * 90),
        ("validation", "b" * 10),
    ]
    assert len(splits(TEXTS[:9], share=0.1)) == 18


def test_texts_are_not_all_held_in_memory():
    endless = chain(TEXTS, iter(int, 1))  # an int in the place of a text would fail
    found = split_documents(endless, share=1e-9)
    assert len([next(found) for _ in range(2000)]) == 2000


# --- portions ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(texts=st.lists(st.text(alphabet="ab ", min_size=1, max_size=40)))
def test_pieces_are_short_and_together_they_are_the_text(texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CHARACTERS", 8)
        found = list(pieces(("train", text) for text in texts))
        listed = list(portions(found))
    assert "".join(piece.text for piece in found) == "".join(texts)
    assert sum(piece.starts_document for piece in found) == len(texts)
    assert all(0 < len(piece.text) <= 8 for piece in found)
    assert list(chain(*listed)) == found
    sizes = [sum(len(piece.text) for piece in portion) for portion in listed]
    assert all(8 <= size < 16 for size in sizes[:-1])


def test_long_texts_are_cut_in_front_of_a_space(monkeypatch):
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 8)
    assert list(pieces([("train", "one two three"), ("validation", "abcdefghij")])) == [
        Piece("train", starts_document=True, text="one two"),
        Piece("train", starts_document=False, text=" three"),
        Piece("validation", starts_document=True, text="abcdefgh"),
        Piece("validation", starts_document=False, text="ij"),
    ]


def test_training_texts_are_for_training_and_not_too_many():
    texts = [("train", "one"), ("validation", "two"), ("train", "three"), ("train", "four")]
    assert list(training_texts(iter(texts), num_characters=5)) == ["one", "three"]
    assert list(training_texts(iter(texts), num_characters=100)) == ["one", "three", "four"]
