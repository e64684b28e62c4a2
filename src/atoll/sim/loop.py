"""An event loop in which time is a number, and in which processes freeze and die.

    ready callbacks, one after the other --> none left: jump to the next timer --> none: a deadlock

What would run in a thread runs in its turn, so nothing depends on which is faster: the same program
does the same things in the same order. Each callback belongs to the `Process` in whose context it
was made. Those of a frozen one wait until it thaws; those of a dead one never run, and no `finally`
of it either: `kill -9` leaves nobody the time to tidy up.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from enum import Enum
from heapq import heapify, heappop, heappush
from inspect import iscoroutine
from itertools import count
from math import inf
from typing import Any, TypeAlias, TypeVar, TypeVarTuple, Unpack

from atoll import clock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Status = Enum("Status", "RUNNING FROZEN DEAD")
MAX_CANCELLED = 10_000  # timers that nobody waits for any more; then they are swept out
MAX_AT_ONCE = 5_000_000  # callbacks at one moment: somebody asks again and again
MAX_CLOSED = 1000  # times that a coroutine is told to end
SHOWN = 60  # tasks in an account of who waits for what
FEW_TASKS = 32  # of a process, before those that are done are swept out
# Python's own thresholds suit programs with little in memory. With thousands of processes in one,
# a third of the time would go into looking again and again at what all of them hold.
COLLECT_AT = (1_000_000, 20, 1000)


class Deadlock(Exception):
    """Every task waits, and no timer is set; or the time is over. Says what each waits for."""


class Killed(BaseException):
    """Unwinds the callback in which a process dies; no code of ours may catch it."""


@dataclass(slots=True)
class Condition:
    """How a machine fares: its processors so many times slower, its wall clock wrong by `skew_s`.

    All that its processes do is done `within` this, such as a full disk.
    """

    slowness: float = 1.0
    skew_s: float = 0.0
    within: Callable[[], AbstractContextManager[None]] | None = None


class Process:
    """Callbacks that freeze, thaw and die together."""

    def __init__(self, name: str, loop: "VirtualLoop", condition: Condition) -> None:
        self.name = name
        self.status = Status.RUNNING
        self.condition = condition
        self._loop = loop
        self._tasks: list[_Task[Any]] = []
        self._sweep_at = FEW_TASKS
        self._held: list[tuple[Process | None, asyncio.Handle]] = []
        self._context = copy_context()
        self._context.run(_current.set, self)
        self._context.run(clock.wall.set, lambda: EPOCH_S + loop.time() + condition.skew_s)

    @property
    def is_running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def is_alive(self) -> bool:
        return self.status is not Status.DEAD

    def note(self, task: "_Task[Any]") -> None:
        """Count the task as one of ours."""
        if len(self._tasks) >= self._sweep_at:
            self._tasks = self.undone()
            self._sweep_at = max(FEW_TASKS, 2 * len(self._tasks))
        self._tasks.append(task)

    def undone(self) -> "list[_Task[Any]]":
        """Return the tasks of this process that are not done, in the order in which they began."""
        return [task for task in self._tasks if not task.done()]

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run this in the process."""
        return self._loop.create_task(work, context=self._context.copy())

    def run(self, work: Callable[[], T]) -> T:
        """Do this in the process, now."""
        return self._context.copy().run(work)

    def freeze(self) -> None:
        if self.is_running:
            self.status = Status.FROZEN

    def thaw(self) -> None:
        """Go on: all that came meanwhile is done now."""
        if self.status is Status.FROZEN:
            self.status = Status.RUNNING
            held, self._held = self._held, []
            self._loop.resume(held)

    def die(self) -> None:
        """End at once. The callback that calls this should raise `Killed` if it is our own."""
        self.status = Status.DEAD
        self._held.clear()
        self._loop.keep_tasks_of(self)

    def hold(self, handle: asyncio.Handle) -> None:
        self._held.append((self, handle))


EPOCH_S = 1_700_000_000.0  # what wall clocks show when the loop's clock is at 0
_current: ContextVar[Process | None] = ContextVar("process", default=None)


class _Task(asyncio.Task[T]):
    """A task whose place in a set is the same in each run of the same program."""

    def __init__(
        self,
        work: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        loop: "VirtualLoop",
        name: str | None,
        context: Context | None,
    ) -> None:
        self.number = loop.next_number()
        self.process = _current.get() if context is None else context.get(_current)
        name = name or getattr(work, "__qualname__", "task")
        super().__init__(work, loop=loop, name=name, context=context)
        if self.process is not None:
            self.process.note(self)

    def __hash__(self) -> int:
        return self.number


class _Future(asyncio.Future[Any]):
    def __init__(self, *, loop: "VirtualLoop") -> None:
        self.number = loop.next_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


_Due: TypeAlias = tuple[Process | None, asyncio.Handle]


class VirtualLoop(asyncio.BaseEventLoop):
    """`work_s` says how long what would run in a thread takes; `bugs` are errors nobody awaits."""

    def __init__(self, *, limit_s: float = inf, work_s: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self.bugs: list[dict[str, Any]] = []
        self._limit_s = limit_s
        self._work_s = work_s
        self._now = 0.0
        self._run_at_once = 0  # callbacks since the clock last moved
        self._numbers = count()
        self._due: deque[_Due] = deque()
        self._timers: list[tuple[float, int, Process | None, asyncio.TimerHandle]] = []
        self._num_cancelled = 0
        self._graves: list[_Task[Any]] = []
        self.set_exception_handler(_note_bug)

    # --- time -----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        process = _current.get() if context is None else context.get(_current)
        handle = asyncio.Handle(callback, args, self, context)
        self._due.append((process, handle))
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)  # there are no threads

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        process = _current.get() if context is None else context.get(_current)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._numbers), process, timer))
        return timer

    def _timer_handle_cancelled(self, _: asyncio.TimerHandle) -> None:
        self._num_cancelled += 1
        if self._num_cancelled > MAX_CANCELLED:
            self._timers = [timer for timer in self._timers if not timer[3].cancelled()]
            heapify(self._timers)
            self._num_cancelled = 0

    def _run_once(self) -> None:
        """Run what is due; if nothing is, jump to the next moment at which something is."""
        if not self._due:
            self._jump()
        if self._run_at_once > MAX_AT_ONCE:
            raise Deadlock(f"time stands still\n{self.who_waits()}")
        for _ in range(len(self._due)):
            process, handle = self._due.popleft()
            if handle.cancelled():
                continue
            if process is None or process.is_running:
                self._run_at_once += 1
                if process is None or process.condition.within is None:
                    handle._run()
                else:
                    with process.condition.within():
                        handle._run()
            elif process.is_alive:
                process.hold(handle)

    def _jump(self) -> None:
        while self._timers and self._timers[0][3].cancelled():
            heappop(self._timers)
        if not self._timers:
            raise Deadlock(f"every task waits, and no timer is set\n{self.who_waits()}")
        if self._timers[0][0] > self._limit_s:
            raise Deadlock(f"not done after {self._limit_s:g} s\n{self.who_waits()}")
        self._now = max(self._now, self._timers[0][0])
        self._run_at_once = 0
        while self._timers and self._timers[0][0] <= self._now:
            _, _, process, timer = heappop(self._timers)
            self._due.append((process, timer))

    def resume(self, held: list[_Due]) -> None:
        """Run what a frozen process has missed."""
        self._due.extend(held)

    # --- tasks ----------------------------------------------------------------------------------

    def next_number(self) -> int:
        return next(self._numbers)

    def create_future(self) -> "asyncio.Future[Any]":
        return _Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> "asyncio.Task[T]":
        return _Task(coro, loop=self, name=None if name is None else str(name), context=context)

    def run_in_executor(
        self,
        executor: object,  # noqa: ARG002 - there are no threads
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> "asyncio.Future[T]":
        """Do this work in its turn, once the time that it takes is over; nothing stops it."""
        future = self.create_future()
        process = _current.get()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - it is for whoever awaits the future
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        slowness = 1.0 if process is None else process.condition.slowness
        self.call_later(self._work_s() * slowness, work)
        return future

    # --- what went wrong ------------------------------------------------------------------------

    def keep_tasks_of(self, process: Process) -> None:
        """Keep the tasks of a dead process as they are: to forget one is to run its `finally`."""
        self._graves += process.undone()

    def who_waits(self) -> str:
        """Return what each task waits for, a line for each."""
        tasks = sorted(
            (task for task in asyncio.all_tasks(self) if isinstance(task, _Task)),
            key=lambda task: task.number,
        )
        lines = [f"  at {self._now:.3f} s, {len(tasks)} tasks wait:"]
        for task in tasks[:SHOWN]:
            process = task.process
            owner = "the simulation" if process is None else f"{process.name}"
            if process is not None and not process.is_running:
                owner += f" ({process.status.name.lower()})"
            lines.append(f"  {owner}: {task.get_name()} {' < '.join(_waiting_at(task))}")
        return "\n".join(lines)

    def abandon_all(self) -> None:
        """End all tasks without a trace: the simulation is over, and this loop is closed."""
        abandoned: set[asyncio.Task[Any]] = set()
        while tasks := asyncio.all_tasks(self) - abandoned:  # a `finally` may begin further ones
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined] # as gather() does
                _close(task.get_coro())
            abandoned |= tasks
        self._due.clear()
        self._timers.clear()


def _close(work: Any) -> None:
    """Close a coroutine, from what it awaits outwards, however often its `finally` awaits more."""
    for _ in range(MAX_CLOSED):
        innermost = work
        while iscoroutine(inner := innermost.cr_await) and inner.cr_frame is not None:
            innermost = inner
        with suppress(BaseException):  # whatever a dead process has to say
            innermost.close()
        if work.cr_frame is None:
            return


def run(
    main: Coroutine[Any, Any, T],
    *,
    limit_s: float,
    work_s: Callable[[], float] = lambda: 0.0,
) -> T:
    """Return what `main` returns, in virtual time.

    Raises:
        Deadlock: nothing can happen any more, or it takes longer than that.
    """
    loop = VirtualLoop(limit_s=limit_s, work_s=work_s)
    asyncio.set_event_loop(loop)
    thresholds = gc.get_threshold()
    gc.set_threshold(*COLLECT_AT)
    try:
        return loop.run_until_complete(loop.create_task(main))
    finally:
        loop.close()
        loop.abandon_all()
        asyncio.set_event_loop(None)
        gc.set_threshold(*thresholds)  # last: tasks that nobody holds must be ended, not collected


def _note_bug(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, VirtualLoop)
    if not isinstance(context.get("exception"), Killed):
        loop.bugs.append(context)


def _waiting_at(task: "asyncio.Task[Any]") -> list[str]:
    """Return where the task waits, the innermost place first."""
    places = []
    work: Any = task.get_coro()
    while work is not None:
        frame = getattr(work, "cr_frame", None) or getattr(work, "ag_frame", None)
        if frame is not None:
            code = frame.f_code
            places.append(f"{code.co_qualname}:{frame.f_lineno}")
        work = getattr(work, "cr_await", None) or getattr(work, "ag_await", None)
    return places[::-1]
