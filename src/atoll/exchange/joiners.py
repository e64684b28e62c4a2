"""Whom a member serves states and datasets: few at a time, so that each of them gets on.

All flows to joiners share one small part of the uplink (see `uplink`). Divided among many, none of
them would ever be done; so the others are told that we are busy, and ask elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from atoll.ids import PeerId

AT_ONCE: Final = 4
AWAY_S: Final = 10.0  # whoever has asked for nothing for so long has left its place to others


class Joiners:
    """`now` tells the time, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._serving: Counter[PeerId] = Counter()  # requests under way
        self._until: dict[PeerId, float] = {}  # how long a place is kept between two requests

    def admit(self, peer: PeerId) -> bool:
        """Return whether the peer has a place; if there is one left, it has it from now on."""
        now = self._now()
        self._until = {
            joiner: until
            for joiner, until in self._until.items()
            if until > now or self._serving[joiner]
        }
        if peer not in self._until and len(self._until) >= AT_ONCE:
            return False
        self._until[peer] = now + AWAY_S
        return True

    @contextmanager
    def serving(self, peer: PeerId) -> Iterator[None]:
        """Keep the place of an admitted peer for as long as this takes, and a while longer."""
        self._serving[peer] += 1
        try:
            yield
        finally:
            self._serving[peer] -= 1
            self._serving += Counter()  # forgets who is at zero
            self._until[peer] = self._now() + AWAY_S
