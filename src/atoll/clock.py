"""The two clocks, for code outside an event loop (inside one, the loop's clock is the clock).

Durations and deadlines come from `monotonic_s`. `wall_s` only labels records for people to read,
and dates the expiry of invites on the host: no peer's wall clock decides anything.
"""

import time
from collections.abc import Callable
from contextvars import ContextVar

# A simulated machine has one of its own, which may be wrong.
wall: ContextVar[Callable[[], float]] = ContextVar("wall", default=time.time)


def monotonic_s() -> float:
    return time.monotonic()


def wall_s() -> float:
    """Return the seconds since 1970, as this machine believes."""
    return wall.get()()
