"""Time that jumps, order that repeats, processes that stop where they are."""

import asyncio
import gc
import weakref

import pytest

from atoll.clock import wall_s
from atoll.sim.loop import EPOCH_S, Condition, Deadlock, Killed, Process, run


def loop():
    return asyncio.get_running_loop()


def test_hours_pass_at_once():
    async def main():
        await asyncio.sleep(10_000)
        return loop().time()

    assert run(main(), limit_s=20_000) == 10_000


def test_a_process_forgets_the_tasks_that_are_done():
    async def main():
        process = Process("busy", loop(), Condition())
        waiting = process.spawn(asyncio.sleep(1e6))
        done = [weakref.ref(process.spawn(asyncio.sleep(0))) for _ in range(1000)]
        await asyncio.sleep(1)
        recent = [process.spawn(asyncio.sleep(0)) for _ in range(1000)]
        gc.collect()
        assert not any(task() for task in done)
        await asyncio.sleep(1)
        assert all(task.done() for task in recent)
        assert process.undone() == [waiting]

    run(main(), limit_s=10)


def test_a_deadlock_says_what_each_task_waits_for():
    async def wait_for_nobody():
        await asyncio.Event().wait()

    async def main():
        await asyncio.gather(wait_for_nobody(), wait_for_nobody())

    with pytest.raises(Deadlock, match=r"no timer is set(.|\n)*Event\.wait:\d+ < .*nobody:\d+"):
        run(main(), limit_s=10)


def test_what_takes_too_long_says_who_waits():
    async def main():
        for _ in range(100):
            await asyncio.sleep(1)

    with pytest.raises(Deadlock, match=r"not done after 10 s(.|\n)*main:\d+"):
        run(main(), limit_s=10)


def test_a_loop_that_lets_no_time_pass_is_an_error(monkeypatch):
    monkeypatch.setattr("atoll.sim.loop.MAX_AT_ONCE", 1000)

    async def main():
        for _ in range(100_000):
            await asyncio.sleep(0)

    with pytest.raises(Deadlock, match="time stands still"):
        run(main(), limit_s=10)


def test_the_order_in_sets_of_tasks_is_that_of_their_making():
    async def main():
        order = []

        async def member(number):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                order.append(number)
                raise

        async def fail():
            await asyncio.sleep(1)
            raise ValueError

        async def together():
            async with asyncio.TaskGroup() as group:  # it keeps its tasks in a set
                for number in range(20):
                    group.create_task(member(number))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup):
            await together()
        return order

    first = run(main(), limit_s=10)
    padding = [object() for _ in range(1000)]  # other addresses
    assert run(main(), limit_s=10) == first
    assert len(padding) == 1000


def test_work_for_a_thread_is_done_in_its_turn_and_takes_its_time():
    async def main():
        done = await asyncio.gather(
            *(asyncio.to_thread(lambda k=k: (k, loop().time())) for k in range(3))
        )
        return done, loop().time()

    seconds = iter([3.0, 1.0, 2.0])
    done, ended_at = run(main(), limit_s=10, work_s=lambda: next(seconds))
    assert (done, ended_at) == ([(0, 3.0), (1, 1.0), (2, 2.0)], 3.0)


def test_an_error_in_a_thread_is_for_who_awaits_it():
    async def main():
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)

    run(main(), limit_s=10)


def test_a_frozen_process_does_what_it_missed_once_it_thaws():
    async def main():
        ticks = []

        async def tick():
            while True:
                await asyncio.sleep(1)
                ticks.append(loop().time())

        process = Process("anna", loop(), Condition())
        process.spawn(tick())
        await asyncio.sleep(2.5)
        process.freeze()
        await asyncio.sleep(10)
        assert ticks == [1, 2]
        process.thaw()
        await asyncio.sleep(1.2)
        return ticks

    assert run(main(), limit_s=100) == [1, 2, 12.5, 13.5]


def test_a_dead_process_tidies_nothing_up():
    async def main():
        tidied = []

        async def work():
            try:
                await asyncio.sleep(1)
            finally:
                tidied.append(1)

        process = Process("anna", loop(), Condition())
        process.spawn(work())
        await asyncio.sleep(0.5)
        process.die()
        await asyncio.sleep(10)
        assert not process.is_alive
        assert loop().bugs == []
        return list(tidied)

    assert run(main(), limit_s=100) == []


def test_a_process_may_die_in_the_middle_of_a_line():
    async def main():
        process = Process("anna", loop(), Condition())

        async def write():
            process.die()
            raise Killed

        process.spawn(write())
        await asyncio.sleep(1)
        return loop().bugs

    assert run(main(), limit_s=10) == []


def test_each_process_has_a_wall_clock_of_its_own():
    async def main():
        right, wrong = (
            Process("anna", loop(), Condition()),
            Process("ben", loop(), Condition(skew_s=-3600)),
        )
        await asyncio.sleep(5)
        return right.run(wall_s), wrong.run(wall_s)

    assert run(main(), limit_s=10) == (EPOCH_S + 5, EPOCH_S + 5 - 3600)


def test_what_nobody_awaits_is_a_bug():
    async def main():
        async def fail():
            raise ValueError("lost")

        task = loop().create_task(fail())
        await asyncio.sleep(1)
        del task
        return [str(context["exception"]) for context in loop().bugs]

    assert run(main(), limit_s=10) == ["lost"]


def test_timers_that_were_cancelled_hold_nothing_up():
    async def main():
        for _ in range(30_000):
            async with asyncio.timeout(1e6):
                await asyncio.sleep(0)
        return len(loop()._timers)

    assert run(main(), limit_s=10) <= 20_001
