"""Who waits for a trainer just now, and how long that may take before it counts as hung."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.peer.trainer import Trainer

HUNG_S = 300.0  # for the first step, which may compile; later at the least
HUNG_STEPS = 10  # times the slowest step of late
SLOWEST_KEPT = 0.9  # with each step: one that compiled, or had company, is forgotten after a while


class Patience:
    def __init__(self) -> None:
        self._slowest_s = 0.0
        self._stepped_at = 0.0
        self._num_asking = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def seconds(self) -> float:
        """How long a trainer may take for a step or an answer."""
        return max(HUNG_S, HUNG_STEPS * self._slowest_s)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Wait for the trainer meanwhile: whoever does learns of its death by itself."""
        self._num_asking += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._num_asking -= 1
            if not self._num_asking:
                self._is_idle.set()

    async def idle(self) -> None:
        """Return when nobody waits for the trainer."""
        await self._is_idle.wait()

    def begin(self) -> None:
        """Note that steps begin now."""
        self._stepped_at = asyncio.get_running_loop().time()

    def note_step(self, seconds: float) -> None:
        """Note that a step is done, and how long it took."""
        self.begin()
        self._slowest_s = max(SLOWEST_KEPT * self._slowest_s, seconds)

    async def watch(self, trainer: Trainer) -> None:
        """Kill the trainer when it takes far longer for a step than it did of late: it hangs."""
        loop = asyncio.get_running_loop()
        while True:
            wait_s = self._stepped_at + self.seconds - loop.time()
            if wait_s <= 0:
                trainer.kill()
                return
            await asyncio.sleep(wait_s)
