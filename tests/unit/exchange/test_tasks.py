import asyncio
import gc
import threading
from contextlib import suppress

import pytest
from tests.unit.virtual import now, run

from atoll.errors import PeerError, RunError
from atoll.exchange.tasks import each_in_thread, in_thread, running, together


async def after(seconds, error=None, done=None):
    try:
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
    finally:
        if done is not None:
            done.append(now())


def test_together_returns_when_all_are_done():
    async def main():
        await together(after(1), after(5), after(3))
        return now()

    assert run(main()) == 5


def test_nothing_to_do_is_done():
    run(together())


def test_the_first_error_ends_the_others_and_comes_out_as_it_is():
    async def main():
        done = []
        with pytest.raises(PeerError, match="three"):
            await together(
                after(5, RunError("five"), done),
                together(after(3, PeerError("three"), done), after(9, None, done)),
            )
        return done

    assert run(main()) == [3, 3, 3]


def test_cancelled_together_cancels_all():
    async def main():
        done = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await together(after(5, None, done), after(6, None, done))
        return done

    assert run(main()) == [2, 2]


def test_running_ends_with_its_body():
    async def main():
        done = []
        async with running(after(5, None, done)):
            await asyncio.sleep(2)
        return done

    assert run(main()) == [2]


def test_a_failure_beside_the_body_ends_the_body():
    async def main():
        with pytest.raises(RunError, match="beside"):
            async with running(after(2, RunError("beside"))):
                await asyncio.sleep(100)
        return now()

    assert run(main()) == 2


def test_an_error_of_the_body_ends_what_runs_beside_it():
    async def main():
        done = []
        with pytest.raises(PeerError, match="body"):
            async with running(after(5, None, done)):
                await after(1, PeerError("body"))
        return done

    assert run(main()) == [1]


async def beside(work):
    async with running(work):
        await asyncio.sleep(100)


@pytest.mark.parametrize("group", [together, beside])
@pytest.mark.parametrize("fails_first", [True, False])
def test_a_failure_in_the_moment_of_a_cancellation_does_not_hide_it(group, fails_first):
    """Whoever tries again after each failure would not end; who has cancelled it waits for that."""

    async def main():
        failing = asyncio.Event()

        async def work():
            await failing.wait()
            raise PeerError("the other side closed the connection")

        async def stubborn():
            while True:
                with suppress(PeerError):
                    await group(work())
                failing.clear()

        task = asyncio.create_task(stubborn())
        await asyncio.sleep(1)
        for act in (failing.set, task.cancel) if fails_first else (task.cancel, failing.set):
            act()
        await asyncio.wait([task], timeout=5)
        is_cancelled = task.cancelled()
        task.cancel()
        return is_cancelled

    assert run(main())


def test_work_that_is_done_first_leaves_the_body_alone():
    async def main():
        async with running(after(1)):
            await asyncio.sleep(4)
        return now()

    assert run(main()) == 4


def test_an_error_in_a_thread_that_nobody_waits_for_any_more_is_no_bug():
    async def main():
        going, fails = threading.Event(), threading.Event()

        def work():
            going.set()
            assert fails.wait(60)
            raise ValueError("too late")

        waiting = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(going.wait, 60)
        waiting.cancel()
        await asyncio.sleep(0)
        fails.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        del waiting
        gc.collect()

    bugs = []

    async def watched():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        await main()
        await asyncio.sleep(0)

    asyncio.run(watched())
    assert bugs == []


def test_items_are_handed_over_one_by_one_up_to_the_one_that_fails():
    async def main():
        done = []

        def invert(number):
            return 1 / number

        with pytest.raises(ZeroDivisionError):
            await each_in_thread(
                invert, iter([4, 2, 0, 1]), done=lambda item, result: done.append((item, result))
            )
        return done

    assert asyncio.run(main()) == run(main()) == [(4, 0.25), (2, 0.5)]


def test_once_cancelled_no_other_item_is_begun_and_the_one_in_work_is_ended():
    async def main():
        begun, done = [], []
        going, may_end = threading.Event(), threading.Event()

        def work(item):
            begun.append(item)
            going.set()
            assert may_end.wait(60)
            return item

        waiting = asyncio.create_task(
            each_in_thread(work, iter([1, 2, 3]), done=lambda item, _: done.append(item))
        )
        await asyncio.to_thread(going.wait, 60)
        waiting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return begun, done

    assert asyncio.run(main()) == ([1], [1])
