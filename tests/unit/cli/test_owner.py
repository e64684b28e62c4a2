"""An owner's wishes, and a real agent with a scripted trainer, in virtual time."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import pytest
from tests.unit.host.test_service import Serving
from tests.unit.memory import Network, until
from tests.unit.peer.scripted import ScriptedTrainer
from tests.unit.peer.test_agent import SHORT, Replica
from tests.unit.virtual import now, run

from atoll import events
from atoll.cli.owner import PAUSE_FILE, Owner, peers_here, set_paused
from atoll.cli.part import Part
from atoll.errors import ConfigError
from atoll.exchange.tasks import running
from atoll.peer.hours import Hours

BEGAN = datetime(2026, 11, 27, 6, 59, 55, tzinfo=UTC)


def clock() -> datetime:
    """A clock on the wall that goes as the event loop's does; it begins five seconds before 7."""
    return datetime.fromtimestamp(BEGAN.timestamp() + now(), tz=UTC)


@asynccontextmanager
async def an_owned_peer(path, *, hours=""):
    """A peer that is in its first round, and what its owner has to say to it."""
    async with AsyncExitStack() as stack:
        serving = Serving(path, Network(), SHORT)
        await serving.start()
        stack.push_async_callback(serving.end)
        for label in ("built-in", "anna"):
            member = Replica(serving, path / label, trains=label == "anna")
            if member.trains:
                await member.enrol(label)
            member.start()
            stack.push_async_callback(member.kill)
        await until(lambda: "anna" in ScriptedTrainer.alive)
        part = Part(SHORT, began_at=0.0)
        owner = Owner(
            part, member.directory, Hours.parse(hours), give_up=member.task.cancel, now=clock
        )
        await stack.enter_async_context(running(owner.watch(member.agent)))
        yield serving, member, owner, part


def committed(serving) -> int:
    return serving.host.run.committed


@pytest.fixture(autouse=True)
def _slow_steps():
    ScriptedTrainer.alive.clear()
    ScriptedTrainer.pace = {"anna": 2.0}
    yield
    ScriptedTrainer.pace = {}


def test_the_first_ctrl_c_leaves_after_the_round_and_the_second_at_once(tmp_path):
    async def main():
        async with an_owned_peer(tmp_path) as (serving, anna, owner, part):
            await until(lambda: ScriptedTrainer.alive["anna"].trained)
            owner.interrupt()
            assert not await anna.task, "the run is not complete"
            assert committed(serving) == 1, "what she had begun is in it"
            assert anna.reports(events.Stopped)[0].reason == "left after the round"
            assert part.is_leaving

    async def again():
        async with an_owned_peer(tmp_path / "again") as (serving, anna, owner, _):
            await until(lambda: ScriptedTrainer.alive["anna"].trained)
            owner.interrupt()
            owner.interrupt()
            await asyncio.wait([anna.task])
            assert anna.task.cancelled()
            assert committed(serving) == 0

    run(main())
    (tmp_path / "again").mkdir()
    ScriptedTrainer.alive.clear()
    run(again())


def test_to_ask_again_while_it_ends_does_not_cut_short_what_is_tidied_up(tmp_path):
    async def main():
        async with an_owned_peer(tmp_path) as (_, anna, owner, _part):
            await until(lambda: ScriptedTrainer.alive["anna"].trained)
            vectors = ScriptedTrainer.alive["anna"].vectors.path
            assert vectors.exists()
            owner.end()
            await asyncio.sleep(1.0)
            assert not anna.task.done(), "its trainer still takes a step"
            owner.end()
            owner.interrupt()
            await asyncio.wait([anna.task])
            assert not vectors.exists()

    run(main())


def test_a_pause_lasts_as_long_as_its_file(tmp_path):
    async def main():
        async with an_owned_peer(tmp_path) as (serving, anna, _, _part):
            await until(lambda: ScriptedTrainer.alive["anna"].trained)
            set_paused(anna.directory, rests=True)
            await asyncio.sleep(5.0)
            before = list(ScriptedTrainer.alive["anna"].trained)
            rounds = committed(serving)
            assert rounds < SHORT.sync.rounds
            assert serving.host.run.membership.get(anna.peer).rests
            await asyncio.sleep(100.0)
            assert ScriptedTrainer.alive["anna"].trained == before
            assert committed(serving) == rounds
            set_paused(anna.directory, rests=False)
            await until(lambda: committed(serving) == SHORT.sync.rounds)

    run(main())


def test_when_its_hours_end_it_leaves_after_the_round_and_is_back_when_they_begin(tmp_path):
    async def main():
        async with an_owned_peer(tmp_path, hours="7:02-7") as (serving, anna, owner, part):
            assert not await anna.task
            assert f"{clock():%H:%M}" == "07:00"
            assert committed(serving) >= 1
        await owner.until_open()
        assert f"{clock():%H:%M}" == "07:02"
        assert part.news[-1].text == "resting until 07:02; Ctrl-C ends it"

    run(main())


def test_without_a_peer_there_is_nothing_to_pause(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no peer runs here"):
        peers_here(None)
    with pytest.raises(ConfigError, match="no peer lives in"):
        peers_here(tmp_path)
    assert PAUSE_FILE not in [path.name for path in tmp_path.iterdir()]
