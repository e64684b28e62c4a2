"""How a person reads bytes, counts and seconds."""

import pytest

from atoll.units import format_bytes, format_count, format_seconds


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_250_000, "1.2 MB"),
        (5.2e9, "5.2 GB"),
        (4e13, "40.0 TB"),
        (4e16, "40000.0 TB"),
        (-2000, "-2.0 kB"),
    ],
)
def test_format_bytes(num_bytes: float, text: str):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (1_310_720, "1.3 M"), (10.21e9, "10.2 B")],
)
def test_format_count(count: float, text: str):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.2, "4.2 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7530, "2 h 5 min"),
        (359_940, "99 h 59 min"),
        (1e6, "11 d 13 h"),
    ],
)
def test_format_seconds(seconds: float, text: str):
    assert format_seconds(seconds) == text
