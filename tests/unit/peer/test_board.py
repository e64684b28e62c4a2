import asyncio

import pytest
from tests.unit.virtual import run

from atoll.errors import PeerError
from atoll.ids import Lease
from atoll.net import wire
from atoll.peer.board import Board


def plan(version):
    return wire.Plan(
        round=1,
        version=version,
        fragment=0,
        first_step=0,
        codec="fp32",
        update_codec="fp32",
        reductions=(),
        leases=(Lease(id=1, start=0, stop=4),),
        sources=(),
    )


async def a_moment():
    for _ in range(10):
        await asyncio.sleep(0)


def test_who_waits_gets_the_first_thing_that_is_there():
    async def main():
        board = Board()
        board.plans[1] = plan(1)
        assert await board.wait_for(lambda: board.plans.get(1)) is board.plans[1]
        waiting = asyncio.create_task(board.wait_for(lambda: board.closed.get(1)))
        await a_moment()
        board.notify()  # of something else
        await a_moment()
        assert not waiting.done()
        board.closed[1] = wire.Closed(round=1, roster_version=1)
        board.notify()
        assert await waiting is board.closed[1]

    run(main())


def test_what_was_said_of_rounds_that_the_state_contains_is_forgotten():
    board = Board()
    board.commits = {1: "one", 2: "two", 3: "three"}
    board.plans, board.closed = {2: "planned", 4: "planned"}, {1: "closed", 3: "closed"}
    board.forget(through=2)
    assert board.commits == {3: "three"}
    assert (board.plans, board.closed) == ({4: "planned"}, {3: "closed"})


class Acting:
    """What `follow` began, finished and gave up, with the versions of the plan as its keys."""

    def __init__(self, *, fails_at=0, lasts_s=5.0):
        self.board = Board()
        self.fails_at = fails_at
        self.lasts_s = lasts_s
        self.log = []
        self.following = asyncio.create_task(
            self.board.follow(
                lambda: self.board.plans[1].version if 1 in self.board.plans else None, self.act
            )
        )

    async def act(self, version):
        self.log.append(("begins", version))
        try:
            await asyncio.sleep(self.lasts_s)
        except asyncio.CancelledError:
            self.log.append(("gives up", version))
            raise
        if version == self.fails_at:
            raise PeerError("failed")
        self.log.append(("ends", version))

    def now_plan(self, version):
        self.board.plans = {1: plan(version)} if version else {}
        self.board.notify()

    async def stop(self):
        self.following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.following


def test_what_is_done_for_a_plan_starts_anew_when_there_is_another():
    async def main():
        acting = Acting()
        await asyncio.sleep(1)
        assert acting.log == []
        acting.now_plan(1)
        await asyncio.sleep(1)
        acting.board.notify()  # of something else
        acting.now_plan(2)
        await asyncio.sleep(9)
        assert acting.log == [("begins", 1), ("gives up", 1), ("begins", 2), ("ends", 2)]
        await acting.stop()

    run(main())


def test_what_is_done_stays_done_until_the_plan_changes():
    async def main():
        acting = Acting()
        acting.now_plan(1)
        await asyncio.sleep(50)
        assert acting.log == [("begins", 1), ("ends", 1)]
        acting.now_plan(None)
        await asyncio.sleep(50)
        acting.now_plan(1)
        await asyncio.sleep(50)
        assert acting.log == [("begins", 1), ("ends", 1)] * 2
        await acting.stop()

    run(main())


def test_between_two_plans_nothing_is_done():
    async def main():
        acting = Acting()
        acting.now_plan(1)
        await asyncio.sleep(1)
        acting.now_plan(None)
        await asyncio.sleep(50)
        assert acting.log == [("begins", 1), ("gives up", 1)]
        await acting.stop()

    run(main())


def test_an_error_of_what_is_done_comes_out():
    async def main():
        acting = Acting(fails_at=2)
        acting.now_plan(1)
        await asyncio.sleep(1)
        acting.now_plan(2)
        with pytest.raises(PeerError, match="failed"):
            await acting.following

    run(main())


def test_cancelled_it_ends_what_it_began():
    async def main():
        acting = Acting()
        acting.now_plan(1)
        await asyncio.sleep(1)
        await acting.stop()
        assert acting.log == [("begins", 1), ("gives up", 1)]
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others

    run(main())
