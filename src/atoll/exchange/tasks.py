"""Tasks that live and fail together, with the plain error of the one that failed."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeAlias, TypeVar

from atoll.units import KIB

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
SHORT_BYTES = 512 * KIB  # are checked in a tenth of a millisecond: as long as a thread takes
Start: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


@asynccontextmanager
async def group() -> AsyncIterator[Start]:
    """Let the body start tasks, and end once all are done; a failure ends the body and the others.

    What is raised is the plain error that it began with. But if the task of the body was cancelled,
    that comes first: until Python 3.13 a TaskGroup lets a failure in the same moment hide it, and
    then whoever tries again after a failure never ends, and whoever cancelled it waits for ever.
    """
    loop, owner = asyncio.get_running_loop(), asyncio.current_task()
    assert owner is not None, "only a task can have others"
    cancelled_before = owner.cancelling()
    started: set[asyncio.Task[None]] = set()
    all_done = loop.create_future()

    def note_end(task: asyncio.Task[None]) -> None:
        started.discard(task)
        if not started and not all_done.done():
            all_done.set_result(None)

    try:
        async with asyncio.TaskGroup() as tasks:

            def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                task = tasks.create_task(work)
                started.add(task)
                task.add_done_callback(note_end)
                return task

            yield start
            # In here, and not at the end of the TaskGroup: what fails while that waits counts as a
            # cancellation of the owner for good, and could not be told from a real one.
            while started:
                all_done = loop.create_future()
                await all_done
    except BaseExceptionGroup as errors:
        if owner.cancelling() > cancelled_before:
            raise asyncio.CancelledError from None
        raise _first(errors) from None


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Return when all are done. If one fails the others are cancelled, and its error is raised."""
    async with group() as start:
        for one in work:
            start(one)


async def comes_first(work: Awaitable[object], ending: "asyncio.Future[Any]") -> bool:
    """Return whether the work is done before the other; if not, it is cancelled."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()


async def in_thread(work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what `work` returns in a thread. Cancelled, it ends only once the thread has.

    For work on memory or files that others use next.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if not working.cancelled():
            working.exception()  # looked at: whoever wanted to know has gone
        raise


async def at_once_or_beside(work: Callable[[], R], *, is_short: bool) -> R:
    """Return what `work` returns: at once, or in a thread if it would keep others waiting.

    A thread costs two switches, and takes turns with the loop for as long as both run Python.
    """
    return work() if is_short else await asyncio.to_thread(work)


async def each_in_thread(
    work: Callable[[T], R], items: Iterator[T], *, done: Callable[[T, R], None]
) -> None:
    """Do this with one item after the other in a thread, and hand `done` what came of each.

    `done` is called on the loop. One thread for all: to begin in another costs 0.1 ms each time.
    Several threads may share the iterator of a list. Cancelled, it ends once the item that is in
    work is done.
    """
    loop, is_enough = asyncio.get_running_loop(), threading.Event()

    def work_on() -> None:
        for item in items:
            if is_enough.is_set():
                return
            loop.call_soon_threadsafe(done, item, work(item))

    working = asyncio.ensure_future(in_thread(work_on))
    try:
        await asyncio.shield(working)
    finally:
        is_enough.set()
        await asyncio.wait([working])
        working.exception()  # looked at: whoever was cancelled does not want to know


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the body: its failure ends the body, the end of the body ends it."""
    async with group() as start:
        task = start(work)
        try:
            yield
        finally:
            task.cancel()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that a group of groups began with."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
