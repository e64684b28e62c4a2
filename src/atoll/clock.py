"""The two clocks, for code outside an event loop (inside one, the loop's clock is the clock).

Durations and deadlines come from `monotonic_s`. `wall_s` only labels records for people to read,
and dates the expiry of invites on the host: no peer's wall clock decides anything.
"""

import time


def monotonic_s() -> float:
    return time.monotonic()


def wall_s() -> float:
    """Return the seconds since 1970, as this machine believes."""
    return time.time()
