"""What a member reports of itself: how long things take, what it moves, what it warns of."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from math import inf
from typing import Final

from atoll.config import RunConfig
from atoll.events import BytesMoved, Downloading, Emit, PhaseTimed, RoundTaken, Warned
from atoll.exchange.links import Links
from atoll.ids import RoundId
from atoll.model.shapes import num_parameters
from atoll.net.records import Heard
from atoll.traffic import Traffic

TELL_S: Final = 0.5  # between two reports of how far a download is


class Accounts:
    """`untold` is what the host does not know yet of what we sent and received."""

    def __init__(self, config: RunConfig, links: Links, *, emit: Emit) -> None:
        self.emit = emit
        self.untold = Traffic()
        self._links = links
        self._before = Traffic()  # when we took the last outer step
        self._values_per_round = num_parameters(config.model) * config.steps_per_round

    def close_round(self, round_id: RoundId) -> None:
        """Report what was sent and received since the outer step before."""
        now = self._now()
        moved, self._before = now.since(self._before), now
        self.untold += moved
        bits = 8 * (moved.contributions_sent + moved.updates_sent) / self._values_per_round
        self.emit(BytesMoved(round=round_id, traffic=moved, bits=bits))

    def close(self, round_id: RoundId) -> Traffic:
        """Report what was sent and received since; return what the host does not know yet."""
        now = self._now()
        moved, self._before = now.since(self._before), now
        self.emit(BytesMoved(round=round_id, traffic=moved, bits=0.0))
        told, self.untold = self.untold + moved, Traffic()
        return told

    def _now(self) -> Traffic:
        """Return our counters; whatever moved and was no payload is control.

        A payload that is half-way counts as control until it is whole; the counters of control
        stand still meanwhile, so that no byte counts twice.
        """
        now, transport = copy(self._links.traffic), self._links.transport
        now.control_sent = max(self._before.control_sent, transport.num_sent - now.sent)
        now.control_received = max(
            self._before.control_received, transport.num_received - now.received
        )
        return now

    @contextmanager
    def timed(self, phase: str, round_id: RoundId) -> Iterator[None]:
        started_at = asyncio.get_running_loop().time()
        yield
        seconds = asyncio.get_running_loop().time() - started_at
        self.emit(PhaseTimed(round=round_id, phase=phase, seconds=seconds))

    def begin_download(self, what: str) -> None:
        """Report from now on how far the download of this is."""
        told_at = -inf

        def note(num_bytes: int, total_bytes: int) -> None:
            nonlocal told_at
            now = asyncio.get_running_loop().time()
            if now >= told_at + TELL_S or num_bytes >= total_bytes:
                told_at = now
                self.emit(Downloading(what=what, num_bytes=num_bytes, total_bytes=total_bytes))

        self._links.on_download = note

    def warn(self, text: str, *, hint: str = "") -> None:
        self.emit(Warned(text=text, hint=hint))


def taken(commit: Heard) -> RoundTaken:
    """Return what our volunteer wants to know of a round."""
    mine = commit.counted
    return RoundTaken(
        round=commit.round,
        num_contributors=commit.num_contributors,
        num_tokens=0 if mine is None else mine.num_tokens,
        round_tokens=0 if mine is None else mine.round_tokens,
        total_tokens=0 if mine is None else mine.total_tokens,
    )
