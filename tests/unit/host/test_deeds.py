"""Nothing that a decision asks for happens before the records ahead of it are durable."""

import asyncio
from functools import partial
from random import Random

import pytest
from tests.unit.host.scene import GENESIS, A
from tests.unit.virtual import now

from atoll.errors import DeposedError, RunError
from atoll.host.deeds import Deeds
from atoll.host.journal import Journal
from atoll.ids import RoundId
from atoll.net.identity import Identity
from atoll.net.records import Planned
from atoll.sim import loop

IDENTITY = Identity.create()
SEEDS = 100
STEPS = 40


class SlowStore:
    """A store in memory. The virtual loop says how long a thread takes that writes to it."""

    place = "memory"

    def __init__(self, *, is_far=True, writes_left=None):
        self.is_far = is_far
        self.entries = []
        self.writes = 0
        self._writes_left = writes_left

    def read(self, *, start=0):
        return self.entries[start:]

    def append(self, entries):
        self.writes += 1
        if self._writes_left is not None and self.writes > self._writes_left:
            raise RunError("the database is gone")
        if entries[0].seq != len(self.entries):
            return False
        self.entries += entries
        return True

    def close(self):
        pass


class Stage:
    """Deeds, and what has come of them: which were done, and how many records were durable then."""

    def __init__(self, store):
        self.store = store
        self.journal = Journal(store, sign=IDENTITY.sign)
        self.failures = []
        self.noted = []
        self.deeds = Deeds(self.journal, note=self.noted.extend, fail=self.failures.append)
        self.num_records = 0
        self.asked = []  # how many records were asked for before each deed
        self.did = []  # the number of the deed, and how many records were durable

    def append(self, num_records):
        first = self.num_records + 1
        self.num_records += num_records
        rounds = range(first, first + num_records)
        self.deeds.append(tuple(Planned(round=RoundId(r), peers=(A,)) for r in rounds))

    def do(self):
        self.asked.append(self.num_records)
        self.deeds.then(partial(self._do, len(self.asked) - 1))

    def _do(self, number):
        self.did.append((number, len(self.store.entries)))

    async def play(self, chance):
        """Ask for records and deeds at random, at random moments."""
        for _ in range(STEPS):
            for _ in range(chance.randrange(4)):
                self.append(chance.randrange(1, 3)) if chance.random() < 0.4 else self.do()
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.01, 1.0]))


def in_virtual_time(seed, main):
    """Run `main(chance)`; each write to the store takes up to three seconds."""
    chance = Random(seed)
    return loop.run(main(chance), limit_s=1000.0, work_s=lambda: chance.uniform(0.0, 3.0))


@pytest.mark.parametrize("is_far", [False, True])
def test_all_is_done_in_its_order_and_after_the_records_before_it(is_far):
    async def main(chance):
        stage = Stage(SlowStore(is_far=is_far))
        await stage.play(chance)
        await stage.deeds.done()
        return stage

    for seed in range(SEEDS):
        stage = in_virtual_time(seed, main)
        assert [number for number, _ in stage.did] == list(range(len(stage.asked))), seed
        for number, num_durable in stage.did:
            assert num_durable >= stage.asked[number], seed
        rounds = [entry.record.round for entry in stage.store.entries]
        assert rounds == list(range(1, stage.num_records + 1)), seed
        assert stage.noted == stage.journal.entries == stage.store.entries, seed
        assert not stage.failures, seed


async def play_to_the_end(stage, chance):
    await stage.play(chance)
    stage.append(1)
    await stage.deeds.done()


def test_what_follows_a_record_that_could_not_be_written_is_never_done():
    async def main(chance):
        stage = Stage(SlowStore(writes_left=chance.randrange(4)))
        with pytest.raises(RunError, match="gone"):
            await play_to_the_end(stage, chance)
        with pytest.raises(RunError, match="gone"):
            stage.do()
        await stage.deeds.end()
        return stage

    for seed in range(SEEDS):
        stage = in_virtual_time(seed, main)
        durable = len(stage.store.entries)
        due = [number for number, records in enumerate(stage.asked) if records <= durable]
        assert [number for number, _ in stage.did] == due[: len(stage.did)], seed
        assert len(stage.failures) == 1, seed


def test_the_loop_goes_on_while_the_store_writes_and_what_waits_is_written_together():
    async def main(_):
        stage = Stage(SlowStore())
        stage.append(1)
        stage.do()
        began_at = now()
        for _ in range(10):
            stage.append(1)
            stage.do()
        assert (stage.store.writes, now()) == (0, began_at)
        await stage.deeds.done()
        assert stage.store.writes <= 2
        assert len(stage.did) == 11

    in_virtual_time(0, main)


def test_with_a_store_at_hand_all_is_done_when_it_is_asked_for():
    stage = Stage(SlowStore(is_far=False, writes_left=1))
    stage.do()
    stage.append(2)
    stage.do()
    assert stage.did == [(0, 0), (1, 2)]
    with pytest.raises(RunError, match="gone"):
        stage.append(1)
    assert len(stage.failures) == 1


def test_a_host_that_was_deposed_learns_that_from_its_next_append():
    async def main(_):
        stage = Stage(SlowStore())
        other = Journal(stage.store, sign=IDENTITY.sign)
        other.append([GENESIS])
        other.store.entries.append(other.next_led("b:1", at=0.0))
        stage.append(1)
        stage.do()
        with pytest.raises(DeposedError, match="b:1 leads this run by now"):
            await stage.deeds.done()
        assert not stage.did
        assert isinstance(stage.failures[0], DeposedError)

    in_virtual_time(0, main)


def test_a_deed_that_fails_ends_the_host():
    async def main(_):
        stage = Stage(SlowStore())
        stage.append(1)

        def full():
            raise RunError("no room for events")

        stage.deeds.then(full)
        with pytest.raises(RunError, match="no room"):
            await stage.deeds.done()
        assert len(stage.failures) == 1

    in_virtual_time(0, main)
