"""Whole agents that train on while the exchange is under way, with trainers from a script.

Host, members and rounds are real, on a network in memory and in virtual time. At the end every
value of the model must be what the leases of the commits say: each sample in it once.
"""

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import accumulate
from math import nan

import numpy as np
import pytest
from msgspec.structs import replace
from tests.unit.host.scene import CONFIG, SYNC
from tests.unit.host.test_service import Serving
from tests.unit.memory import Network, until
from tests.unit.peer.scripted import STEP, ScriptedTrainer
from tests.unit.peer.test_agent import Replica
from tests.unit.virtual import run

from atoll import events
from atoll.config import OuterConfig, run_digest
from atoll.ids import RoundId
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.net import records
from atoll.outer.saved import read_saved
from atoll.traffic import Traffic

OVERLAP = replace(
    CONFIG,
    sync=replace(SYNC, rounds=4, inner_steps=4, mode="overlap", codec="fp64", update_codec="fp64"),
    outer=OuterConfig(lr=1.0, momentum=0.0),
)
STREAMING = replace(
    OVERLAP,
    model=replace(CONFIG.model, num_layers=2),
    sync=replace(OVERLAP.sync, fragments=2, rounds=6),
)


IN_FLIGHT = replace(STREAMING, sync=replace(STREAMING.sync, in_flight=2))
in_all_ways = pytest.mark.parametrize(
    "config", [OVERLAP, STREAMING, IN_FLIGHT], ids=["whole", "halves", "in flight"]
)


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    monkeypatch.setattr(ScriptedTrainer, "pace", {})
    monkeypatch.setattr(ScriptedTrainer, "alive", {})
    monkeypatch.setattr(ScriptedTrainer, "losses", {})


@asynccontextmanager
async def a_run(path, config, *names, unreachable=()):
    """A run whose peers are called that; yields the host, its built-in member, and the peers."""
    async with AsyncExitStack() as stack:
        serving = Serving(path, Network(), config)
        await serving.start()
        stack.push_async_callback(serving.end)
        built_in = Replica(serving, path / "built-in")
        built_in.start()
        stack.push_async_callback(built_in.kill)
        peers = {}
        for name in names:
            peers[name] = Replica(serving, path / name, trains=True)
            await peers[name].enrol(name)
            if name in unreachable:
                serving.network.unreachable.add(serving.network.next_port)
            peers[name].start()
            stack.push_async_callback(peers[name].kill)
        yield serving, built_in, peers


async def ended(serving, built_in, peers):
    """Wait for the end of the run: all are one model."""
    await asyncio.gather(*(peer.task for peer in peers.values()))
    await built_in.task
    rounds = serving.config.sync.rounds
    assert len({member.saved(rounds) for member in (built_in, *peers.values())}) == 1


def check_model(serving, built_in, *, lost=()):
    """Check that the model contains the work of each commit once.

    `lost`: samples that a dead trainer knew, but in the first fragment; the others lack them.
    """
    expected_N = expected_model(serving, lost)
    np.testing.assert_allclose(final_model(serving, built_in), expected_N, rtol=0, atol=1e-6)


def final_model(serving, member):
    rounds = RoundId(serving.config.sync.rounds)
    run_id = run_digest(serving.config)
    return read_saved(member.directory / "states", rounds, run=run_id)[0].params_N


def initial_model(config):
    layout = layout_of(config)
    model_N = np.empty(layout.num_values, np.float32)
    fill_initial_(model_N, layout, seed=config.seed)
    return model_N.astype(float)


def expected_model(serving, lost):
    """Return the initial values, lowered by what the commits say."""
    layout = layout_of(serving.config)
    expected_N = initial_model(serving.config)
    samples = {
        lease.id: range(lease.start, lease.stop)
        for record in serving.recorded(records.Leased)
        for lease in record.leases
    }
    lacking = [{} for _ in layout.fragments]  # of each: samples that others have, by peer
    for commit in serving.recorded(records.Committed):
        for entry in commit.roster:
            for fragment in lacking:
                fragment.setdefault(entry.peer, []).extend(
                    s for lease_id in entry.leases for s in samples[lease_id]
                )
            new = lacking[commit.fragment].pop(entry.peer)
            assert len(set(new)) == len(new)
            start = layout.fragments[commit.fragment].start
            if start:
                new = [sample for sample in new if sample not in lost]
            expected_N[start + np.array(new)] -= STEP * entry.share
    return expected_N


def rosters(serving):
    """Return who is in each commit, by their names."""
    names = {r.peer: r.name for r in serving.recorded(records.Admitted)}
    return [
        sorted(names[entry.peer] for entry in commit.roster)
        for commit in serving.recorded(records.Committed)
    ]


def entry_of(serving, peer, round_id):
    (commit,) = [c for c in serving.recorded(records.Committed) if c.round == round_id]
    return next(entry for entry in commit.roster if entry.peer == peer.peer)


@in_all_ways
def test_each_sample_is_in_the_model_once(tmp_path, config):
    async def main():
        async with a_run(tmp_path, config, "anna", "ben") as scene:
            serving, _, _ = scene
            await ended(*scene)
            check_model(*scene[:2])
            assert rosters(serving) == [["anna", "ben"]] * config.sync.rounds
            assert set(ScriptedTrainer.alive["anna"].merges) == {"replace", "carry"}

    run(main())


@in_all_ways
def test_the_journal_tells_what_was_sent_and_received(tmp_path, config):
    async def main():
        async with a_run(tmp_path, config, "anna", "ben") as scene:
            serving, _, peers = scene
            await ended(*scene)
            await serving.task  # it puts on record what the last of them told as they left
            check_model(*scene[:2])
            moved = {
                peer.peer: [event.traffic for event in peer.reports(events.BytesMoved)]
                for peer in peers.values()
            }
            told = defaultdict(list)
            for record in (
                *serving.recorded(records.Agreed),
                *serving.recorded(records.Moved),
            ):
                for one in record.traffic:
                    told[one.peer].append(one.traffic)
            for peer, by_round in moved.items():
                assert len(by_round) == config.sync.rounds + 1, "the last one when it leaves"
                # Whoever reports after an agreement is in the next one, with two rounds perhaps.
                sums = list(accumulate(by_round))
                heard = [sums.index(total) for total in accumulate(told[peer])]
                assert heard == sorted(set(heard))
                total, network = sums[-1], serving.network
                assert sums[heard[-1]] == total, "all of it is on record"
                assert 0.9 * network.sent[peer] < total.sent <= network.sent[peer]
                assert 0.9 * network.received[peer] < total.received <= network.received[peer]
                assert total.control_sent > 0
            anna, ben = (sum(by_round, Traffic()) for by_round in moved.values())
            assert anna.contributions_sent == ben.contributions_received > 0
            assert ben.contributions_sent == anna.contributions_received > 0
            # Each slice has one reducer, to which the other peer brings its own; fp64 has 8 bytes.
            fragments = [
                layout_of(config).fragment_of(RoundId(k + 1)) for k in range(config.sync.rounds)
            ]
            num_values = sum(fragment.stop - fragment.start for fragment in fragments)
            assert anna.contributions_sent + ben.contributions_sent == 8 * num_values

    run(main())


@in_all_ways
def test_a_slower_peer_carries_its_work(tmp_path, config):
    """However the grace times fall: it has all its leases done at the latest in some rounds."""
    ScriptedTrainer.pace["carl"] = 3.0
    config = replace(config, sync=replace(config.sync, rounds=12))

    async def main():
        async with a_run(tmp_path, config, "anna", "ben", "carl") as scene:
            await ended(*scene)
            check_model(*scene[:2])
            assert any("carl" not in roster for roster in rosters(scene[0]))
            assert any("carl" in roster for roster in rosters(scene[0]))

    run(main())


def test_with_few_contributors_the_outer_step_is_smaller(tmp_path):
    """Two of 16: the cube root of 1/8 is a half."""
    sync = replace(OVERLAP.sync, mode="blocking")
    config = replace(OVERLAP, sync=sync, outer=replace(OVERLAP.outer, contributors=16))

    async def main():
        async with a_run(tmp_path, config, "anna", "ben") as scene:
            serving, built_in, _ = scene
            await ended(*scene)
            moved_N = expected_model(serving, ()) - initial_model(config)
            expected_N = initial_model(config) + moved_N / 2
            model_N = final_model(serving, built_in)
            np.testing.assert_allclose(model_N, expected_N, rtol=0, atol=1e-6)

    run(main())


@pytest.mark.parametrize("mode", ["blocking", "overlap"])
def test_by_time_a_slower_peer_makes_fewer_steps_and_is_in_every_round(tmp_path, mode):
    ScriptedTrainer.pace["carl"] = 4.0
    sync = replace(OVERLAP.sync, pace="time", inner_steps=16, rounds=6, mode=mode)
    config = replace(OVERLAP, sync=sync)

    async def main():
        async with a_run(tmp_path, config, "anna", "ben", "carl") as scene:
            serving, _, peers = scene
            await ended(*scene)
            check_model(*scene[:2])
            assert rosters(serving)[-3:] == [["anna", "ben", "carl"]] * 3
            size = config.inner.batch_sequences * config.data.sequence_length
            last = RoundId(sync.rounds)
            steps = {
                name: entry_of(serving, peer, last).num_tokens // size
                for name, peer in peers.items()
            }
            assert steps == {"anna": 16, "ben": 16, "carl": 4}

    run(main())


@in_all_ways
def test_what_was_offered_and_not_committed_is_offered_again_with_the_next(tmp_path, config):
    """Carl has trained in time, but cannot reach the reducers in round 1."""

    async def main():
        async with a_run(tmp_path, config, "anna", "ben", "carl", unreachable=["carl"]) as scene:
            serving, _, peers = scene
            carl = peers["carl"]
            await until(lambda: carl.reports(events.TrainerStarted))
            serving.network.stranded.add(carl.peer)
            await until(lambda: serving.recorded(records.Committed))
            serving.network.stranded.clear()
            await ended(*scene)
            check_model(*scene[:2])
            assert rosters(serving)[:2] == [["anna", "ben"], ["anna", "ben", "carl"]]
            (first, *_) = [r for r in serving.recorded(records.Leased) if r.peer == carl.peer]
            assert first.leases[0].id in entry_of(serving, carl, 2).leases

    run(main())


@in_all_ways
def test_a_trainer_that_dies_while_its_contribution_is_under_way_is_reset(tmp_path, config):
    """Ben is slower, so that Anna waits for him; what she contributed counts, and only once."""
    ScriptedTrainer.pace["ben"] = 1.9

    async def main():
        async with a_run(tmp_path, config, "anna", "ben") as scene:
            serving, _, peers = scene
            anna = peers["anna"]
            steps = config.steps_per_round
            await until(lambda: len(ScriptedTrainer.alive.get("anna", Nobody).trained) > 2 * steps)
            assert not serving.recorded(records.Committed)
            ScriptedTrainer.alive["anna"].kill()
            await until(lambda: serving.recorded(records.Committed))
            # Round 1 brings that work to the first half; for the second it died with the trainer.
            (first, *_) = [r for r in serving.recorded(records.Leased) if r.peer == anna.peer]
            samples = range(first.leases[0].start, first.leases[0].stop)
            await ended(*scene)
            check_model(*scene[:2], lost=samples)
            assert len(anna.reports(events.TrainerDied)) == 1
            assert len(anna.reports(events.TrainerStarted)) == 2
            assert rosters(serving)[0] == ["anna", "ben"]

    run(main())


def test_residuals_on_disk_are_those_of_contributions_that_were_committed(tmp_path):
    """Carl cannot deliver in round 1."""
    config = replace(STREAMING, sync=replace(STREAMING.sync, codec="int4", update_codec="int8"))

    async def main():
        async with a_run(tmp_path, config, "anna", "ben", "carl", unreachable=["carl"]) as scene:
            serving, _, peers = scene
            carl = peers["carl"]
            await until(lambda: carl.reports(events.TrainerStarted))
            serving.network.stranded.add(carl.peer)
            residuals = carl.directory / "residual"

            def kept():
                return sorted(int(path.name.partition("-")[0]) for path in residuals.glob("0*"))

            await until(lambda: kept() == [1])
            await until(lambda: serving.host.run.committed == 1)
            serving.network.stranded.clear()
            await until(lambda: carl.reports(events.BytesMoved))  # it has taken the step of round 1
            assert 1 not in kept()
            await ended(*scene)
            committed = [
                commit.round
                for commit in serving.recorded(records.Committed)
                if any(entry.peer == carl.peer for entry in commit.roster)
            ]
            newest = {(round_id - 1) % 2: round_id for round_id in committed}
            assert kept() == sorted(newest.values())
            assert 1 not in committed

    run(main())


class Nobody:
    """A trainer that has not started yet."""

    trained = ()


@in_all_ways
def test_work_whose_loss_is_no_number_is_dropped_and_its_peer_begins_again(tmp_path, config):
    """The host would hear of no such loss, and the peer would be in no round any more."""

    async def main():
        ScriptedTrainer.losses["ben"] = nan
        async with a_run(tmp_path, config, "anna", "ben") as (serving, built_in, peers):
            await ended(serving, built_in, peers)
            check_model(serving, built_in)
            (died,) = peers["ben"].reports(events.TrainerDied)
            assert died.reason == "their mean loss is nan"
            assert rosters(serving)[-1] == ["anna", "ben"]

    run(main())
