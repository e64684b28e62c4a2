"""Two hosts, one journal, in virtual time: whatever happens to the leader, the run has one history.

What a host said is committed is so in the journal, whoever leads (`judge`, for every case here and
for a third of the random ones); the real Postgres and real processes are in tests/loopback.
"""

import pytest
from tests.sim.cast import well

from atoll.events import HostStarted, RoundCommitted
from atoll.sim.faults import AtTime, Crash, Cut, Freeze, InRound, OnMessage, Partition, TakeOver
from atoll.sim.play import Case
from atoll.sim.scripts import random_case
from atoll.sim.setting import DATABASE, HOST, STANDBY, PeerSpec, RunSpec, Setting

PEERS = tuple(PeerSpec(name=name, has_dataset=True) for name in ("anna", "ben", "carl"))
LATER = 5.0  # by then one of the two leads
BOTH = {HOST: STANDBY, STANDBY: HOST}
SEEDS = range(100, 116)


def leaders(outcome):
    """Return who led, one after the other."""
    return [name for _, name, event in outcome.trace if isinstance(event, HostStarted)]


def case(*script, **changes):
    run = RunSpec(rounds=8, quorum=1.0, **changes)
    return Case(setting=Setting(seed=4, peers=PEERS, run=run, standby=True), script=script)


@pytest.fixture
def first(tmp_path):
    """The host that leads from the beginning, in all cases of this seed."""
    folder = tmp_path / "quiet"
    folder.mkdir()
    outcome = well(case(), folder)
    (leader,) = leaders(outcome)
    assert [len(roster) for roster in outcome.rosters()] == [3] * 8
    return leader


@pytest.mark.parametrize("kind", ["Reduced", "Held", "AtState", "Contribution"])
def test_a_leader_that_freezes_with_a_round_decided_commits_nothing_when_it_thaws(
    tmp_path, first, kind
):
    other = BOTH[first]
    frozen = Freeze(when=OnMessage(kind, count=7, receiver=first), who=first, seconds=40.0)
    outcome = well(case(frozen), tmp_path)
    assert leaders(outcome) == [first, other]
    (end, *_) = outcome.fleet.hosts[first].ends
    assert end.startswith(
        f"DeposedError: the host at {other}:7777 leads this run by now, in epoch 2"
    )


def test_a_leader_that_is_off_the_database_and_has_all_its_peers_commits_nothing(tmp_path, first):
    other = BOTH[first]
    cut = Cut(when=InRound(3, 1.0), one=first, other=DATABASE, seconds=60.0)
    outcome = well(case(cut), tmp_path)
    assert leaders(outcome) == [first, other]
    at = next(t for t, name, e in outcome.trace if name == other and isinstance(e, HostStarted))
    said = [t for t, name, e in outcome.trace if name == first and isinstance(e, RoundCommitted)]
    assert max(said) < at


def test_a_leader_that_only_the_database_reaches_leads_on_and_the_run_with_it(tmp_path, first):
    """Nobody takes its place: the lead is a matter between hosts, and peers come back."""
    side = tuple(peer.name for peer in PEERS)
    outcome = well(case(Partition(when=InRound(3), side=side, seconds=40.0)), tmp_path)
    assert leaders(outcome) == [first]


def test_the_lead_goes_there_and_back_and_each_round_is_committed_once(tmp_path, first):
    other = BOTH[first]
    script = (
        TakeOver(when=InRound(2, 1.0), who=other),
        TakeOver(when=InRound(4, 1.0), who=first),
        Crash(when=InRound(6, 1.0), who=first, back_s=1.0),
    )
    outcome = well(case(*script, mode="overlap", fragments=2, in_flight=2), tmp_path)
    assert leaders(outcome)[:3] == [first, other, first]
    assert len(leaders(outcome)) == 4


def test_with_the_database_away_nobody_commits_and_then_the_run_goes_on(tmp_path, first):
    script = tuple(
        Cut(when=AtTime(LATER), one=host, other=DATABASE, seconds=30.0) for host in (HOST, STANDBY)
    )
    outcome = well(case(*script), tmp_path)
    quiet = [t for t, _, e in outcome.trace if isinstance(e, RoundCommitted) and 8.0 < t < 34.0]
    assert not quiet


@pytest.mark.parametrize("seed", SEEDS)
def test_random_faults_with_a_second_host(seed, tmp_path):
    well(random_case(seed, standby=True, in_flight=1 + seed % 3), tmp_path)
