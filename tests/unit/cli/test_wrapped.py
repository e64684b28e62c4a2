"""Text on a terminal of few columns, as it comes."""

import re

import pytest
from hypothesis import given, strategies as st

from atoll.cli.wrapped import Wrapped


def shown(pieces, *, columns):
    """Return what is written, and after which piece."""
    written = []
    wrapped = Wrapped(written.append, lambda: columns)
    after = []
    for piece in pieces:
        wrapped.write(piece)
        after.append("".join(written))
    return after


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " re", "ef is", " an", " island", "\n"], "The reef\nis an\nisland\n"),
        (["atolls and lagoons\n"], "atolls\nand\nlagoons\n"),
        (["one\n", "\n  two\n"], "one\n\n  two\n"),
        (["a lighthouse\n"], "a\nlighthouse\n"),  # longer than the line: the terminal breaks it
        (["環礁 環礁 礁\n"], "環礁\n環礁 礁\n"),  # two columns each
    ],
)
def test_no_word_is_broken_at_the_edge(pieces, expected):
    assert shown(pieces, columns=9)[-1] == expected


def test_a_word_is_shown_when_it_has_ended_or_fills_the_line():
    assert shown(["isl", "and", " of", "\n"], columns=9) == [
        "",
        "",
        "island",
        "island of\n"[:6] + "\nof\n",
    ]
    assert shown(["lighthouses"], columns=9) == ["lighthouses"]


@given(st.lists(st.text(alphabet="ab \n", max_size=12)), st.integers(2, 30))
def test_all_words_are_shown_in_their_order_and_only_those_longer_than_a_line_are_broken(
    pieces, columns
):
    text = "".join(pieces) + "\n"
    (*_, written) = shown([*pieces, "\n"], columns=columns)
    assert written.split() == text.split()
    for line in written.split("\n"):
        for word in re.finditer(r"\S+", line):
            in_one_line = word.start() // columns == (word.end() - 1) // columns
            assert in_one_line or len(word.group()) >= columns
