"""Hours of the day, also over midnight."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from atoll.errors import ConfigError
from atoll.peer.hours import Hours

DAY = datetime(2026, 11, 27, tzinfo=UTC)
times = st.times().map(lambda t: t.replace(second=0, microsecond=0, tzinfo=None))
moments = st.integers(0, 2 * 366 * 86_400).map(lambda seconds: DAY + timedelta(seconds=seconds))


def at(text: str) -> datetime:
    hour, minute = text.split(":")
    return DAY.replace(hour=int(hour), minute=int(minute))


@pytest.mark.parametrize(
    ("text", "now", "is_open", "change"),
    [
        ("22-7", "21:59", False, at("22:00")),
        ("22-7", "22:00", True, at("7:00") + timedelta(days=1)),
        ("22-7", "3:00", True, at("7:00")),
        ("22-7", "7:00", False, at("22:00")),
        ("8:30 - 17", "8:29", False, at("8:30")),
        ("8:30 - 17", "16:59", True, at("17:00")),
        ("8:30-17:00", "17:00", False, at("8:30") + timedelta(days=1)),
        ("18-24", "23:59", True, DAY + timedelta(days=1)),
    ],
)
def test_hours(text, now, is_open, change):
    hours = Hours.parse(text)
    assert (hours.is_open(at(now)), hours.next_change(at(now))) == (is_open, change)


@given(times, times, moments)
def test_nothing_changes_before_the_next_change_and_then_it_does(start, end, now):
    if start == end:
        return
    hours = Hours(start, end)
    change = hours.next_change(now)
    assert timedelta(0) < change - now <= timedelta(days=1)
    just_before = change - timedelta(microseconds=1)
    assert hours.is_open(just_before) == hours.is_open(now) != hours.is_open(change)


def test_no_hours_are_all_day():
    assert Hours.parse(" ") is None


@pytest.mark.parametrize("text", ["22", "22-", "22-22", "25-3", "22:60-7", "24:30-7", "late-early"])
def test_what_means_no_hours_is_said(text):
    with pytest.raises(ConfigError, match=f"no hours: {text}"):
        Hours.parse(text)
