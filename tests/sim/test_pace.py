"""Peers of very unequal speed, and many that are lost at once, against the host's decisions."""

from itertools import pairwise
from typing import Literal

import pytest
from tests.sim.world import INNER_STEPS, World, run_of

from atoll.ids import PeerId
from atoll.net import records

Pace = Literal["steps", "time"]
ROUNDS = 12
PEERS = 8
in_both_paces = pytest.mark.parametrize("pace", ["steps", "time"])
seeds = pytest.mark.parametrize("seed", range(10))


def uneven(seed: int, pace: Pace, *, spread: float) -> World:
    """Return a run whose slowest peer takes `spread` times as long as the fastest: 5 s."""
    world = World(seed, peers=PEERS, rounds=ROUNDS, pace=pace)
    trainers = [peer for peer in world.peers.values() if peer.trains]
    for place, peer in enumerate(trainers):
        peer.speed = 5.0 * spread ** (place / (len(trainers) - 1))
    return world


def complete(world: World) -> bool:
    return world.host is not None and world.host.is_complete


def commits_of(world: World) -> list[records.Committed]:
    return [record for record in world.journal if isinstance(record, records.Committed)]


def timed_commits(world: World, *, deadline: float) -> list[float]:
    """Run to the end, and return when each round was committed."""
    times: list[float] = []
    for number in range(1, ROUNDS + 1):
        world.run_until(lambda n=number: len(commits_of(world)) >= n, deadline=deadline)
        times.append(world.now)
    world.run_until(lambda: complete(world), deadline=deadline)
    return times


def samples_counted_once(world: World) -> None:
    """Check that each sample is committed, held or free, and the committed ones are those named."""
    book = world.book()
    sizes = {
        lease.id: lease.stop - lease.start
        for record in world.journal
        if isinstance(record, records.Leased)
        for lease in record.leases
    }
    named = [i for c in commits_of(world) for entry in c.roster for i in entry.leases]
    assert len(named) == len(set(named))
    committed = sum(stop - start for start, stop in book.committed)
    assert committed == sum(sizes[i] for i in named)
    held = sum(lease.stop - lease.start for of in book.held.values() for lease in of)
    assert committed + held + sum(stop - start for start, stop in book.free) == book.frontier


@in_both_paces
@seeds
@pytest.mark.parametrize("spread", [10, 100])
def test_rounds_go_on_whoever_is_slow_and_nothing_counts_twice(seed: int, pace: Pace, spread: int):
    world = uneven(seed, pace, spread=spread)
    timed_commits(world, deadline=10_000)
    assert run_of(world) == list(range(1, ROUNDS + 1))
    samples_counted_once(world)


@seeds
def test_by_time_everybody_is_in_every_roster_and_counts_by_what_it_managed(seed: int):
    world = uneven(seed, "time", spread=30)
    times = timed_commits(world, deadline=10_000)
    trainers = [peer for peer in world.peers.values() if peer.trains]
    median_s = sorted(peer.speed for peer in trainers)[PEERS // 2]
    # Round 1 tells how fast each is; what is leased in round 2 goes by it.
    for commit in commits_of(world)[1:]:
        assert {entry.peer for entry in commit.roster} == {peer.id for peer in trainers}
        tokens = {entry.peer: entry.num_tokens for entry in commit.roster}
        fastest, slowest = (tokens[peer.id] for peer in (trainers[0], trainers[-1]))
        assert fastest > 10 * slowest
        assert sum(entry.share for entry in commit.roster) == pytest.approx(1)
    for before, after in pairwise(times[1:]):
        assert after - before < median_s + 3


@seeds
def test_by_steps_the_slow_carry_and_the_fast_do_not_wait_for_them(seed: int):
    world = uneven(seed, "steps", spread=30)
    times = timed_commits(world, deadline=10_000)
    slowest = max(world.peers.values(), key=lambda peer: peer.speed)
    rosters = [{entry.peer for entry in commit.roster} for commit in commits_of(world)]
    assert slowest.id not in rosters[0]
    assert any(slowest.id in roster for roster in rosters) or times[-1] < slowest.speed
    samples = world.config.samples_per_round * world.config.data.sequence_length
    assert {e.num_tokens for c in commits_of(world) for e in c.roster} == {samples}


def lose(world: World, victims: list[PeerId], how: str) -> None:
    for peer in victims:
        if how == "killed":
            world.kill(world.peers[peer])
        else:
            world.peers[peer].frozen = True


@in_both_paces
@seeds
@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize(("peers", "num_lost"), [(12, 4), (10, 9)])
def test_many_lost_at_once_cost_the_others_no_round(
    seed: int, pace: Pace, how: str, peers: int, num_lost: int
):
    world = World(seed, peers=peers, rounds=ROUNDS, pace=pace)
    trainers = [peer.id for peer in world.peers.values() if peer.trains]
    victims = world.rng.sample(trainers, num_lost)
    world.run_until(lambda: len(commits_of(world)) == 3, deadline=1_000)
    world.after(world.rng.uniform(0, 10), lambda: lose(world, victims, how))
    world.run_until(lambda: len(commits_of(world)) == 4, deadline=1_000)
    lost_at = world.now
    sync = world.config.sync
    for number in range(5, ROUNDS + 1):
        world.run_until(lambda n=number: len(commits_of(world)) >= n, deadline=lost_at + 1_000)
        assert world.now - lost_at < 15 * 1.5 + sync.silent_s + 3 * sync.grace_floor_s + 5
        lost_at = world.now
    world.run_until(lambda: complete(world), deadline=world.now + 100)
    survivors = set(trainers) - set(victims)
    for commit in commits_of(world)[5:]:
        assert {entry.peer for entry in commit.roster} == survivors
    samples_counted_once(world)


@in_both_paces
@seeds
def test_who_was_frozen_is_back_when_it_thaws(seed: int, pace: Pace):
    world = World(seed, peers=5, rounds=ROUNDS, pace=pace)
    frozen = [peer for peer in world.peers.values() if peer.trains][:2]
    world.run_until(lambda: len(commits_of(world)) == 3, deadline=1_000)
    lose(world, [peer.id for peer in frozen], "frozen")
    world.run_until(lambda: len(commits_of(world)) == 7, deadline=1_000)
    assert not {peer.id for peer in frozen} & {e.peer for e in commits_of(world)[-1].roster}
    for peer in frozen:
        peer.frozen = False
    world.run_until(lambda: complete(world), deadline=2_000)
    back = {entry.peer for commit in commits_of(world)[8:] for entry in commit.roster}
    assert {peer.id for peer in frozen} <= back
    samples_counted_once(world)


def test_a_newcomer_by_time_begins_with_few_steps_and_soon_has_its_part():
    world = World(3, peers=4, rounds=ROUNDS, pace="time")
    trainers = [peer for peer in world.peers.values() if peer.trains]
    for peer in trainers:
        peer.speed = 10.0
    world.kill(trainers[0])
    world.run_until(lambda: len(commits_of(world)) == 4, deadline=1_000)
    world.start(trainers[0])
    world.run_until(lambda: complete(world), deadline=1_000)
    batch_tokens = world.config.inner.batch_sequences * world.config.data.sequence_length
    steps = [
        entry.num_tokens // batch_tokens
        for commit in commits_of(world)
        for entry in commit.roster
        if entry.peer == trainers[0].id
    ]
    assert steps[0] == INNER_STEPS // 8
    assert set(steps[1:]) == {INNER_STEPS}
