"""What other systems get wrong, by name: each is one scenario, and must not happen here."""

from math import nan

import numpy as np
import pytest
from tests.sim.cast import well

from atoll import events
from atoll.config import run_digest
from atoll.ids import RoundId
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.net import records, wire
from atoll.net.records import Leased, Released
from atoll.outer.saved import read_saved
from atoll.sim.faults import (
    NEVER,
    AtTime,
    BadWeights,
    Crash,
    Cut,
    Freeze,
    HostCrash,
    InRound,
    OnMessage,
    Partition,
    Tamper,
    TrainerDeath,
)
from atoll.sim.judge import samples_of
from atoll.sim.play import Case
from atoll.sim.setting import BUILT_IN, HOST, PeerSpec, RunSpec, Setting
from atoll.sim.trainer import Regression, Tally

ANNA, BEN, CARL = (PeerSpec(name=name) for name in ("anna", "ben", "carl"))
BOTH = pytest.mark.parametrize("mode", ["blocking", "overlap"])


def case(*script, peers=(ANNA, BEN, CARL), seed=1, model="tally", **run):
    setting = Setting(seed=seed, peers=peers, run=RunSpec(**run), model=model)
    return Case(setting=setting, script=script)


def seconds_of_rounds(outcome):
    return {e.round: e.seconds for e in outcome.reported(events.RoundCommitted)}


def parameters(outcome):
    """Return what the parameters are after the last round, and what they began with."""
    config = outcome.fleet.config
    states = outcome.fleet.home("anna") / "states"
    state, _ = read_saved(states, RoundId(config.sync.rounds), run=run_digest(config))
    initial_N = np.empty(len(state.params_N), np.float32)
    fill_initial_(initial_N, layout_of(config), seed=config.seed)
    return state.params_N, initial_N


@BOTH
def test_no_peer_goes_on_with_a_model_of_its_own_after_retries_that_failed(mode, tmp_path):
    """PRIME: after three failed tries a peer takes its local result for the mean, and says nothing.

    Here Carl reaches neither the host nor any peer for rounds on end.
    """
    script = Partition(when=InRound(2, 1.0), side=("carl",), seconds=60.0)
    outcome = well(case(script, mode=mode), tmp_path)
    # The judge has compared all final states. And nobody took a step that was not committed:
    assert not outcome.reported(events.StateDiffers)
    assert any("carl" not in roster for roster in outcome.rosters())


@BOTH
def test_the_mean_is_divided_by_those_who_are_in_it(mode, tmp_path):
    """PRIME, hivemind: a peer is lost after the weights were agreed on, and its part stays zero."""
    lost = Crash(when=OnMessage("Closed", sender=HOST, receiver="carl"), who="carl", back_s=20.0)
    cut_off = Cut(when=InRound(3, 0.5), one="carl", other="anna", seconds=40.0)
    outcome = well(case(lost, cut_off, mode=mode), tmp_path)
    for commit in outcome.commits:
        assert sum(entry.share for entry in commit.roster) == pytest.approx(1.0, abs=1e-12)
    # That the model has each sample with just that share, the judge has computed.


@BOTH
def test_the_steps_of_survivors_are_not_discarded(mode, tmp_path):
    """Torchft: whoever is in a round with one that dies does its inner steps again."""
    dies = Crash(when=OnMessage("Slice", count=3, sender="carl"), who="carl", back_s=15.0)
    outcome = well(case(dies, mode=mode), tmp_path)
    for name in ("anna", "ben"):
        (trained,) = outcome.fleet.devices[name].lives
        assert len(trained) == len(set(trained))
    assert [roster for roster in outcome.rosters() if {"anna", "ben"} <= set(roster)]


def test_no_round_is_reported_with_a_part_of_the_vector_not_averaged(tmp_path):
    """PCCL, hivemind: success is reported although the reducer of a part was lost."""
    reduces = OnMessage("Reduce", sender=HOST, receiver="ben")
    outcome = well(case(Crash(when=reduces, who="ben", back_s=60.0), vocab_size=4096), tmp_path)
    layout = layout_of(outcome.fleet.config)
    learned_N, initial_N = parameters(outcome)
    assert all(len(commit.updates) == 5 for commit in outcome.commits)
    assert (np.flatnonzero(initial_N - learned_N) < Tally.of(layout).size).all()


@BOTH
def test_a_frozen_peer_is_out_of_the_round_after_the_grace_time_and_back_when_it_thaws(
    mode, tmp_path
):
    """PRIME, PCCL: one frozen process stalls all the others for ever."""
    outcome = well(
        case(Freeze(when=InRound(3, 1.0), who="carl", seconds=12.0), mode=mode, rounds=10), tmp_path
    )
    sync = outcome.fleet.config.sync
    assert max(seconds_of_rounds(outcome).values()) < 10 + sync.silent_s + sync.grace_floor_s
    rosters = outcome.rosters()
    assert any("carl" not in roster for roster in rosters[2:6])
    assert "carl" in rosters[-1]


def test_a_peer_that_is_frozen_for_ever_does_not_hold_the_others(tmp_path):
    outcome = well(case(Freeze(when=InRound(2, 1.0), who="carl", seconds=NEVER)), tmp_path)
    assert outcome.rosters()[-1] == ["anna", "ben"]


@BOTH
@pytest.mark.parametrize("factor", [nan, 1e30])
def test_what_one_peer_has_broken_is_in_nobody_elses_weights(mode, factor, tmp_path):
    """All of them: a NaN of one peer, or a value out of all proportion, is in everybody's mean."""
    spoiled = BadWeights(when=InRound(3, 0.5), who="carl", factor=factor)
    outcome = well(case(spoiled, mode=mode, model="regression", rounds=8), tmp_path)
    learned_N, _ = parameters(outcome)
    assert np.isfinite(learned_N).all()
    assert np.abs(learned_N).max() < 1e4
    assert outcome.rosters()[-1] == ["anna", "ben", "carl"]


def test_a_peer_cannot_choose_its_weight(tmp_path):
    """Hivemind: a peer claims a weight of 1e9, and the mean is its own.

    There is no weight in any message of a peer: shares follow from leases and measured norms.
    """
    said = {field for field in wire.Contribution.__struct_fields__ if "share" in field}
    said |= {field for field in wire.Contribution.__struct_fields__ if "weight" in field}
    assert said == set()
    outcome = well(case(), tmp_path)
    samples = samples_of(outcome.records)
    for commit in outcome.commits:
        tokens = {
            entry.peer: 8 * sum(len(samples[lease_id]) for lease_id in entry.leases)
            for entry in commit.roster
        }
        for entry in commit.roster:
            assert entry.share == pytest.approx(tokens[entry.peer] / sum(tokens.values()))


def test_a_joiner_does_not_block_the_others(tmp_path):
    """PRIME: all wait while one joins, and fetches the state from one source."""
    slow = PeerSpec(name="carl", link="lte", joins_at_s=12.0)
    alone = well(case(peers=(ANNA, BEN), rounds=8, vocab_size=8192), tmp_path)
    (tmp_path / "joined").mkdir()
    joined = well(case(peers=(ANNA, BEN, slow), rounds=8, vocab_size=8192), tmp_path / "joined")
    before, after = seconds_of_rounds(alone), seconds_of_rounds(joined)
    grace_s = joined.fleet.config.sync.grace_floor_s
    # Whoever comes in is waited for as any peer is that is a little late, and no longer.
    assert all(after[r] < before[r] * 1.5 + 2 * grace_s for r in before)
    assert any("carl" in roster for roster in joined.rosters())


@BOTH
def test_the_data_of_a_dead_peer_is_trained_on_by_others(mode, tmp_path):
    """PRIME: its part of the data is never trained on."""
    dies = Crash(when=InRound(2, 2.0), who="carl", back_s=NEVER)
    outcome = well(case(dies, mode=mode, rounds=14), tmp_path)
    carl = outcome.fleet.peer_id("carl")
    freed = [r for r in outcome.records if isinstance(r, Released) and r.peer == carl]
    samples = samples_of(outcome.records)
    given_back = {s for record in freed for lease_id in record.leases for s in samples[lease_id]}
    assert given_back
    again = {
        sample
        for record in outcome.records
        if isinstance(record, Leased) and record.peer != carl
        for lease in record.leases
        for sample in samples[lease.id]
    }
    assert given_back <= again


@BOTH
def test_a_run_that_was_stopped_goes_on_where_it_was_in_the_data(mode, tmp_path):
    """PRIME, hivemind: after a restart the data begins anew, or a part of it is skipped."""
    everybody = [
        Crash(when=InRound(4, 1.0), who=who, back_s=30.0, power=False)
        for who in ("anna", "ben", "carl")
    ]
    outcome = well(case(HostCrash(append=14), *everybody, mode=mode, rounds=8), tmp_path)
    committed = sorted(
        sample
        for commit in outcome.commits
        for entry in commit.roster
        for lease_id in entry.leases
        for sample in samples_of(outcome.records)[lease_id]
    )
    assert len(committed) == len(set(committed))
    # What is not committed by the end is what somebody still had in hand, or gave back just then.
    in_hand = 2 * 3 * outcome.fleet.config.samples_per_round
    assert committed[-1] < len(committed) + in_hand


def test_learning_goes_on_under_all_of_it(tmp_path):
    outcome = well(
        case(
            TrainerDeath(when=InRound(2, 1.0), who="anna"),
            Crash(when=InRound(4, 1.0), who="ben", back_s=5.0),
            Crash(when=InRound(6, 1.0), who=HOST, back_s=5.0),
            Tamper(when=OnMessage("Slice", count=5), harm="corrupt"),
            Tamper(when=OnMessage("Update", count=5), harm="corrupt"),
            Freeze(when=AtTime(45.0), who=BUILT_IN, seconds=15.0),
            model="regression",
            rounds=20,
        ),
        tmp_path,
    )
    truth_W = Regression(seed=1).truth()
    (learned_N, initial_N), num_weights = parameters(outcome), len(truth_W)
    distances = [np.linalg.norm(p[:num_weights] - truth_W) for p in (learned_N, initial_N)]
    assert distances[0] < distances[1] / 2
    assert len([r for r in outcome.records if isinstance(r, records.Agreed)]) == 21
