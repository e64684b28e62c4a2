"""Several rounds in flight: real hosts and agents in virtual time, slow lines, random faults."""

import asyncio
import random

import pytest
from tests.loopback.proof import assert_no_sample_counts_twice

from atoll import events
from atoll.ids import RoundId
from atoll.net import records
from atoll.sim.fleet import Fleet
from atoll.sim.loop import run
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting

ROUNDS = 12
PEERS = (
    PeerSpec(name="anna", link="home-fibre", step_s=0.1),
    PeerSpec(name="ben", link="home-dsl", step_s=0.12),
    PeerSpec(name="carl", link="lte", step_s=0.08),
)


def setting_of(in_flight: int, seed: int = 1) -> Setting:
    spec = RunSpec(
        mode="overlap",
        fragments=3,
        in_flight=in_flight,
        inner_steps=6,
        rounds=ROUNDS,
        codec="int4",
        update_codec="int8",
        vocab_size=2048,
    )
    return Setting(seed=seed, peers=PEERS, run=spec)


def play(setting, directory, *, harm=None, limit_s=3000.0) -> tuple[Fleet, float]:
    """Return the fleet after its run, and the virtual seconds from the first commit to the last."""

    async def main():
        fleet = Fleet(setting, directory)
        fleet.start()
        harming = None if harm is None else asyncio.ensure_future(harm(fleet))
        try:
            await fleet.ended()
            history = fleet.records()
        finally:
            if harming is not None:
                harming.cancel()
            fleet.close()
        assert not fleet.loop.bugs, (setting, fleet.loop.bugs)
        check(fleet, history, setting)
        committed = [at for at, _, e in fleet.trace if isinstance(e, events.RoundCommitted)]
        return fleet, committed[-1] - committed[0]

    return run(main(), limit_s=limit_s, work_s=setting.work_times())


def check(fleet, history, setting) -> None:
    """Check what must hold after every run: rounds in order, one state, no sample twice."""
    commits = [record for record in history if isinstance(record, records.Committed)]
    agreed = [record.round for record in history if isinstance(record, records.Agreed)]
    assert [commit.round for commit in commits] == list(range(1, ROUNDS + 1)), setting
    assert agreed == list(range(ROUNDS + 1)), setting
    assert not [e for _, _, e in fleet.trace if isinstance(e, events.StateDiffers)], setting
    assert_no_sample_counts_twice(history)
    assert 1 <= most_open(fleet) <= setting.run.in_flight, setting
    assert all(seat.ends[-1:] in ([], [""]) for seat in fleet.seats.values()), setting


def most_open(fleet) -> int:
    """Return how many rounds were open at once."""
    most, opened, committed = 0, RoundId(0), RoundId(0)
    for _, who, event in fleet.trace:
        match event:
            case events.HostStarted():
                opened = committed
            case events.RoundPlanned(round=round_id) if who == HOST:
                opened = max(opened, round_id)
            case events.RoundCommitted(round=round_id):
                committed = round_id
        most = max(most, opened - committed)
    return most


def test_an_exchange_that_takes_longer_than_the_training_of_a_round_is_hidden(tmp_path):
    """The trainers wait with one round in flight; with three they do not."""
    seconds = {}
    for in_flight in (1, 2, 3):
        fleet, seconds[in_flight] = play(setting_of(in_flight), tmp_path / str(in_flight))
        assert most_open(fleet) == in_flight
    assert seconds[3] <= seconds[2] < 0.9 * seconds[1], seconds


def test_the_same_seed_is_the_same_run(tmp_path):
    one, other = (play(setting_of(2), tmp_path / name)[0] for name in ("one", "other"))
    assert one.trace == other.trace


def faults(seed: int):
    """Return what does random harm, one after the other, and undoes it some time later."""
    rng = random.Random(f"{seed} harm")

    async def harm(fleet):
        loop = fleet.loop
        while True:
            await asyncio.sleep(rng.expovariate(1 / 1.5))
            seat = rng.choice(list(fleet.peers.values()))
            heal_s = rng.choice([0.2, 1.0, 5.0, 45.0])
            match rng.choice(["kill", "trainer", "freeze", "cut", "host"]):
                case "kill":
                    seat.die()
                    loop.call_later(heal_s, seat.start)
                case "trainer" if seat.device is not None and seat.device.trainer is not None:
                    seat.device.trainer.kill()
                case "freeze":
                    seat.freeze()
                    loop.call_later(heal_s, seat.thaw)
                case "cut":
                    fleet.network.cut(seat.name, HOST)
                    loop.call_later(heal_s, fleet.network.heal, seat.name, HOST)
                case "host":
                    fleet.host.die()
                    loop.call_later(heal_s, fleet.host.start)
                case _:
                    pass

    async def some(fleet):
        """For a while: three trainers that die in a row end a peer, and that is no fault here."""
        try:
            async with asyncio.timeout(12):
                await harm(fleet)
        except TimeoutError:
            pass

    return some


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_run_completes_and_nothing_counts_twice(seed, in_flight, tmp_path):
    play(setting_of(in_flight, seed), tmp_path, harm=faults(seed))
