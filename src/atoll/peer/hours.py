"""The hours in which a peer trains, by the clock on the wall of its owner. Pure.

22-7          from 22:00 until 7:00 the next morning          8:30-17
"""

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from atoll.errors import ConfigError

_TIME = r"(\d{1,2})(?::(\d\d))?"
_HOURS = re.compile(rf"{_TIME}\s*-\s*{_TIME}")


@dataclass(frozen=True, slots=True)
class Hours:
    """From `start` until `end`, every day; over midnight where the end is the earlier one."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "Hours | None":
        """Return the hours that the text means; None: it is empty, so it is all day.

        Raises:
            ConfigError: it means none.
        """
        if not text.strip():
            return None
        found = _HOURS.fullmatch(text.strip())
        if found is None:
            raise _no_hours(text)
        start, end = _time(text, found[1], found[2]), _time(text, found[3], found[4])
        if start == end:
            raise _no_hours(text)
        return cls(start, end)

    def is_open(self, now: datetime) -> bool:
        """Return whether this moment, in local time, is one to train in."""
        if self.start < self.end:
            return self.start <= now.time() < self.end
        return now.time() >= self.start or now.time() < self.end

    def next_change(self, now: datetime) -> datetime:
        """Return when the hours next begin or end, in local time."""
        border = self.end if self.is_open(now) else self.start
        today = datetime.combine(now.date(), border, tzinfo=now.tzinfo)
        return today if today > now else today + timedelta(days=1)


def _time(text: str, hour: str, minute: str | None) -> time:
    """Return this time of day; 24 is midnight."""
    hours, minutes = int(hour), int(minute or 0)
    if hours > 24 or minutes > 59 or (hours == 24 and minutes):
        raise _no_hours(text)
    return time(hours % 24, minutes)


def _no_hours(text: str) -> ConfigError:
    return ConfigError(
        f"these are no hours: {text}", hint="for example 22-7, from 22:00 until 7:00, or 8:30-17"
    )
