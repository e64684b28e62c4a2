"""How long it takes to others and back, by the connections that we have dialled. Pure."""

from typing import Final

from atoll.ids import PeerId
from atoll.net import wire

KEPT: Final = wire.MAX_ROUND_TRIPS  # of whom we have dialled last
SAME: Final = 0.25  # by which it may change, and is no news


class RoundTrips:
    """What we have measured, and what the host has been told of it."""

    def __init__(self) -> None:
        self._seconds: dict[PeerId, float] = {}
        self._told: dict[PeerId, float] = {}

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._seconds

    def of(self, peer: PeerId) -> float | None:
        """Return how far away the member is, in seconds; None: we do not know."""
        return self._seconds.get(peer)

    def note(self, peer: PeerId, seconds: float | None) -> None:
        """Note a measurement; None: there is none, since the transport does not tell.

        A longer one than before counts half: as a rule somebody's line was busy.
        """
        if seconds is None:
            return
        before = self._seconds.pop(peer, seconds)
        self._seconds[peer] = min(seconds, (seconds + before) / 2)
        while len(self._seconds) > KEPT:
            self._seconds.pop(next(iter(self._seconds)))

    def news(self) -> tuple[wire.RoundTrip, ...]:
        """Return what the host has not been told yet; from now on it has."""
        news = {
            peer: seconds
            for peer, seconds in self._seconds.items()
            if abs(seconds - self._told.get(peer, 0.0)) > SAME * seconds
        }
        self._told = {peer: self._told[peer] for peer in self._told if peer in self} | news
        return tuple(wire.RoundTrip(peer=peer, seconds=news[peer]) for peer in news)

    def tell_again(self) -> None:
        """Take it that the host knows nothing: it may be another one."""
        self._told.clear()
