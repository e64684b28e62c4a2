"""The kinds of keys that no config of ours has, or that only show in the text."""

import tomllib
from typing import Annotated

import pytest
from hypothesis import example, given, strategies as st
from msgspec import Meta, Struct

from atoll.errors import ConfigError
from atoll.tables import about, convert, template


class Inner(Struct):
    """What may be left out."""

    note: str = "x"


class Outer(Struct):
    """First line.

    Not this one.
    """

    any_number: Annotated[float, about("of any size")] = 0.0
    any_count: int = 0
    not_empty: Annotated[str, Meta(min_length=1)] = "y"
    inner: Inner | None = None


def test_a_template_has_the_first_line_and_comments_out_what_is_off():
    assert template(Outer()) == (
        "# First line.\n"
        "\n"
        "any_number = 0.0                    # of any size\n"
        "any_count = 0                       # \n"
        'not_empty = "y"                     # \n'
        "\n"
        "# Off: What may be left out.\n"
        "# [inner]\n"
        '# note = "x"                          # \n'
    )


def test_a_long_line_has_its_explanation_above():
    lines = template(Outer(any_number=1.0, not_empty="y" * 70)).splitlines()
    assert lines[2:6] == [
        "any_number = 1.0                    # of any size",
        "any_count = 0                       # ",
        f'not_empty = "{"y" * 70}"  # ',
        "",
    ]
    lines = template(Outer(not_empty="y" * 90)).splitlines()
    assert lines[4:6] == ["# ", f'not_empty = "{"y" * 90}"']


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.floats())
@example("\x7f\u2028\U0001f3dd\"\\'\r\n#", -0.0)
def test_any_text_and_number_comes_back(text: str, number: float):
    table = tomllib.loads(template(Outer(not_empty=text, any_number=number)))
    assert table["not_empty"] == text
    assert repr(table["any_number"]) == repr(number)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "^all of it: .* is not a table"),
        ({"any_number": "a"}, "^any_number: 'a' is not a number$"),
        ({"any_count": 0.5}, "^any_count: 0.5 is not a whole number$"),
        ({"not_empty": ""}, "^not_empty: '' is not a string that is not empty$"),
        ({"inner": {"nota": "x"}}, "^inner.nota: unknown key$"),
        ({"inner": 3}, "^inner: 3 is not a table$"),
        ({"any_count": "x" * 1000}, "^any_count: .{60} is not a whole number$"),
    ],
)
def test_what_is_wrong_with_a_table(table: object, message: str):
    with pytest.raises(ConfigError, match=message):
        convert(table, Outer)


def test_an_unknown_key_like_no_other_is_answered_with_all_of_them():
    with pytest.raises(ConfigError) as caught:
        convert({"zzz": 1}, Outer)
    assert caught.value.hint == "known keys: any_number, any_count, not_empty, inner"


def test_a_table_that_may_be_left_out_may_be_null():
    assert convert({"inner": None}, Outer).inner is None
    assert convert({"inner": {"note": "z"}}, Outer).inner == Inner(note="z")
