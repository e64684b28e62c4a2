"""An event loop whose clock jumps to the next timer instead of waiting for it."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

ENOUGH_S = 4_000.0  # of virtual time: whoever still waits then, waits for ever


class _Jump(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("deadlock: every task waits, and no timer is set")
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """What would run in a thread runs here, in its turn: nothing depends on which is faster."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self.bugs: list[dict[str, Any]] = []  # what no task was there to be told of
        self.set_exception_handler(lambda _, context: self.bugs.append(context))

    def time(self) -> float:
        return self._jump.now

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - it is for whoever awaits the future
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_soon(work)
        return future


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Return what `main` returns, in virtual time."""

    async def limited() -> Any:
        async with asyncio.timeout(ENOUGH_S):
            return await main

    loop: VirtualLoop | None = None

    def make() -> VirtualLoop:
        nonlocal loop
        loop = VirtualLoop()
        return loop

    with asyncio.Runner(loop_factory=make) as runner:
        result = runner.run(limited())
    assert loop is not None
    assert not loop.bugs, loop.bugs
    return result


def now() -> float:
    return asyncio.get_running_loop().time()
