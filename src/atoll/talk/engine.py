"""One model that answers many who ask: one completion after the other, beside the server.

    ask -> queue of jobs, bounded -> complete(), token by token -> the pieces of each job, awaited

Between two jobs the model may become a newer one; within a job it stays as it is.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from atoll.errors import AtollError, RunError
from atoll.talk.completion import Piece, Wish, complete
from atoll.talk.source import Source, Speaker

MAX_WAITING: Final = 64  # completions that others wait for, before one is turned away

Put: TypeAlias = Callable[[Piece | AtollError], None]


@dataclass(slots=True, eq=False)
class Job:
    """A completion that somebody waits for."""

    prompt: Sequence[int]
    wish: Wish
    pieces: "asyncio.Queue[Piece | AtollError]" = field(default_factory=asyncio.Queue)
    abandoned: threading.Event = field(default_factory=threading.Event)

    async def read(self) -> AsyncIterator[Piece]:
        """Yield the pieces as they come, up to the last one.

        Raises:
            AtollError: the model could not go on, or a newer one not be read.
        """
        while True:
            piece = await self.pieces.get()
            if isinstance(piece, AtollError):
                raise piece
            yield piece
            if piece.finish is not None:
                return


class Engine:
    """`run` has to be awaited beside those who ask."""

    def __init__(self, source: Source, first: Speaker, *, max_waiting: int = MAX_WAITING) -> None:
        self.speaker = first
        self._source = source
        self._max_waiting = max_waiting
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()

    def has_room(self, num_jobs: int) -> bool:
        return self._jobs.qsize() + num_jobs <= self._max_waiting

    @contextmanager
    def ask(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Have these jobs done in their order; what is left of them when the block ends is not."""
        for job in jobs:
            self._jobs.put_nowait(job)
        try:
            yield
        finally:
            for job in jobs:
                job.abandoned.set()

    async def run(self) -> None:
        """Do one job after the other, until this task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            job = await self._jobs.get()

            def put(piece: Piece | AtollError, job: Job = job) -> None:
                loop.call_soon_threadsafe(job.pieces.put_nowait, piece)

            try:
                await asyncio.to_thread(self._do, job, put)
            except asyncio.CancelledError:
                job.abandoned.set()  # its thread cannot be cancelled, but ends with the next token
                raise

    def _do(self, job: Job, put: Put) -> None:
        try:
            self._speak(job, put)
        except AtollError as error:
            put(error)
        except Exception as error:  # noqa: BLE001 - torch's, of a device that is gone; or any other
            # Whoever waits has to hear of it, and those behind are to have their turn.
            put(RunError(f"the model could not go on: {error!r}"))

    def _speak(self, job: Job, put: Put) -> None:
        if job.abandoned.is_set():
            return
        self.speaker = self._source.newer() or self.speaker
        for piece in complete(self.speaker, job.prompt, job.wish):
            if job.abandoned.is_set():
                return
            put(piece)
