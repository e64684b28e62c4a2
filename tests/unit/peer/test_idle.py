"""A trainer that dies while it has nothing to do, in virtual time."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from tests.unit.host.scene import CONFIG
from tests.unit.peer.scripted import ScriptedTrainer
from tests.unit.virtual import run

from atoll.config import PeerConfig
from atoll.errors import RunError
from atoll.events import TrainerDied, TrainerStarted
from atoll.exchange.tasks import running
from atoll.ids import Lease, LeaseId
from atoll.model.layout import layout_of
from atoll.peer.training import MAX_DEATHS, Training
from atoll.train.shared import SharedVectors

NAME = "idle anna"
LEASE = Lease(id=LeaseId(1), start=0, stop=4)


@asynccontextmanager
async def idle(path):
    """Return a trainer that has nothing to do, somebody who minds it, and what was reported."""
    reported = []
    training = Training(
        CONFIG,
        PeerConfig(directory=str(path), name=NAME),
        start_trainer=ScriptedTrainer.start,
        vectors=SharedVectors.private(path, layout_of(CONFIG).num_values),
        log_path=path / "log",
        emit=reported.append,
    )
    minding = asyncio.create_task(training.mind())
    try:
        await training.start(path)
        yield training, minding, reported
    finally:
        minding.cancel()
        await asyncio.gather(minding, return_exceptions=True)
        await training.stop()


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def kinds(reported):
    return [type(event) for event in reported]


def test_its_death_is_noticed_at_once_and_the_next_one_starts(tmp_path):
    async def main():
        async with idle(tmp_path) as (training, _, reported):
            training.work.hold((LEASE,))
            training.work.begin(4)
            training.work.advance(2)
            assert training.work.consumed == 2
            ScriptedTrainer.alive[NAME].kill()
            await settle()
            assert kinds(reported) == [TrainerStarted, TrainerDied, TrainerStarted]
            assert (reported[1].reason, reported[1].in_a_row) == ("killed", 1)
            assert training.work.consumed == 0, "what it had done died with it"
            assert await training.snapshot(0, 1) is not None, "there is one again"

    run(main())


def test_the_third_death_in_a_row_ends_the_peer(tmp_path):
    async def main():
        async with idle(tmp_path) as (_, minding, reported):
            for _ in range(MAX_DEATHS):
                assert not minding.done()
                ScriptedTrainer.alive[NAME].kill()
                await settle()
            with pytest.raises(RunError, match="3 times in a row, the last time: killed"):
                await minding
            assert kinds(reported).count(TrainerStarted) == MAX_DEATHS

    run(main())


def test_while_its_owner_wants_the_machine_no_new_one_starts(tmp_path):
    async def main():
        async with idle(tmp_path) as (training, _, reported):
            training.pause()
            ScriptedTrainer.alive[NAME].kill()
            await asyncio.sleep(100)
            assert kinds(reported) == [TrainerStarted, TrainerDied]
            assert reported[1].in_a_row == 0
            training.resume()
            await settle()
            assert kinds(reported)[2:] == [TrainerStarted]

    run(main())


def test_a_death_at_work_counts_once_and_is_made_good_by_who_waits_for_it(tmp_path):
    async def main():
        async with idle(tmp_path) as (training, minding, reported):
            training.work.hold((LEASE,))
            training.go_on(0, upto=4)
            async with running(training.reach(4)):
                await asyncio.sleep(0.5)
                ScriptedTrainer.alive[NAME].kill()
                await training.reach(4)
            assert ScriptedTrainer.alive[NAME].trained == [0, 1, 2, 3]
            assert kinds(reported) == [TrainerStarted, TrainerDied, TrainerStarted]
            assert not minding.done()
            ScriptedTrainer.alive[NAME].kill()  # its heir is minded as well
            await settle()
            assert kinds(reported)[3:] == [TrainerDied, TrainerStarted]

    run(main())
