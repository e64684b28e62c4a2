"""What the host has said, newest first, for all tasks of an agent to look at and to wait on."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from atoll.exchange.tasks import running
from atoll.ids import Digest, PeerId, RoundId
from atoll.net import wire
from atoll.net.records import Heard

T = TypeVar("T")


@dataclass(slots=True)
class Board:
    """Written by the host link alone; `session` counts the connections to the host."""

    session: int = 0
    plans: dict[RoundId, wire.Plan] = field(default_factory=dict)
    closed: dict[RoundId, wire.Closed] = field(default_factory=dict)
    commits: dict[RoundId, Heard] = field(default_factory=dict)
    sources: tuple[wire.Address, ...] = ()
    dataset: Digest | None = None
    base: tuple[RoundId, Digest] | None = None  # a state that must be fetched before anything else
    reset: bool = False  # the local work is void
    stop: wire.Stop | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        """Wake everyone who waits: something has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    def forget(self, *, through: RoundId) -> None:
        """Drop what was said of the rounds that our state contains."""
        for said in (self.plans, self.closed, self.commits):
            for round_id in [r for r in said if r <= through]:
                del said[round_id]
        self.notify()

    def reducers(self) -> set[PeerId]:
        """Return whom the plans of open rounds name."""
        return {r.reducer.peer for plan in self.plans.values() for r in plan.reductions}

    async def wait_for(self, look: Callable[[], T | None]) -> T:
        """Return the first thing other than None that `look` finds, now or after a change."""
        while (found := look()) is None:
            await self._changed.wait()
        return found

    async def follow(
        self, key: Callable[[], T | None], act: Callable[[T], Coroutine[Any, Any, None]]
    ) -> None:
        """Run `act` for the newest key, and afresh whenever that changes. It never returns."""
        while True:
            current = await self.wait_for(key)
            async with running(act(current)):
                while key() == current:
                    await self._changed.wait()
