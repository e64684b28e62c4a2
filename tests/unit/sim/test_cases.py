"""Cases are data: they print as what they are, and strike when and whom they say."""

from typing import get_args

import msgspec
import pytest

from atoll import events
from atoll.sim import faults, setting
from atoll.sim.faults import (
    AtTime,
    BadWeights,
    Crash,
    Flicker,
    HostCrash,
    InRound,
    OnMessage,
    Slow,
    Tamper,
)
from atoll.sim.play import Case, events_of, play
from atoll.sim.scripts import random_case
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting

ANNA, BEN = PeerSpec(name="anna"), PeerSpec(name="ben")
SHORT = Setting(seed=3, peers=(ANNA, BEN), run=RunSpec(rounds=2, vocab_size=512))


@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_a_case_is_python_and_json_of_itself(seed):
    case = random_case(seed)
    names = {**vars(faults), **vars(setting), "Case": Case}
    assert eval(str(case), names) == case  # noqa: S307 - it is what a person would paste
    assert msgspec.json.decode(case.to_json(), type=Case) == case
    assert random_case(seed) == case


def test_of_all_that_there_is_some_is_drawn():
    cases = [random_case(seed) for seed in range(400)]
    drawn = {type(fault) for case in cases for fault in case.script}
    assert drawn == set(get_args(faults.Fault)) - {BadWeights}, "it would spoil the judge's sums"
    runs = [case.setting.run for case in cases]
    assert {run.pace for run in runs} == {"steps", "time"}
    assert {run.codec for run in runs} == {"fp64", "int8", "int4", "sparse"}
    assert sum(run.codec == "fp64" for run in runs) > 250


def struck_at(outcome, fault):
    assert fault in outcome.happened
    lost = [at for at, name, e in outcome.trace if name == HOST and isinstance(e, events.PeerLeft)]
    return lost[0]


def test_a_fault_strikes_at_its_time(tmp_path):
    fault = Flicker(when=AtTime(4.25), who="anna")
    outcome, wrong = play(Case(setting=SHORT, script=(fault,)), tmp_path)
    assert wrong == []
    assert struck_at(outcome, fault) == pytest.approx(4.25)


def test_a_fault_strikes_in_its_round(tmp_path):
    fault = Flicker(when=InRound(2, after_s=1.5), who="ben")
    outcome, wrong = play(Case(setting=SHORT, script=(fault,)), tmp_path)
    assert wrong == []
    planned = [
        at
        for at, _, event in outcome.trace
        if isinstance(event, events.RoundPlanned) and event.round == 2
    ]
    assert struck_at(outcome, fault) == pytest.approx(planned[0] + 1.5)


def test_a_fault_strikes_with_its_message(tmp_path):
    fault = Crash(when=OnMessage("AtState", count=2, sender="anna"), who="anna", back_s=1.0)
    outcome, wrong = play(Case(setting=SHORT, script=(fault,)), tmp_path)
    assert wrong == []
    committed = [at for at, _, e in outcome.trace if isinstance(e, events.RoundCommitted)]
    # She reports her state when she comes in, and then after the first round.
    assert struck_at(outcome, fault) == pytest.approx(committed[0], abs=1.0)
    assert outcome.fleet.members["anna"].num_deaths == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_host_dies_at_a_write_of_its_journal(tmp_path, moment):
    fault = HostCrash(append=5, moment=moment, back_s=2.0)
    outcome, wrong = play(Case(setting=SHORT, script=(fault,)), tmp_path)
    assert wrong == []
    assert outcome.happened == [fault]
    starts = outcome.reported(events.HostStarted)
    assert len(starts) == 2


def test_a_slow_machine_takes_longer_for_its_steps(tmp_path):
    slow = Slow(when=AtTime(0.0), who="anna", factor=5.0, seconds=1e6)
    setting = msgspec.structs.replace(SHORT, peers=(ANNA,))
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    fast, _ = play(Case(setting=setting), tmp_path / "one")
    late, _ = play(Case(setting=setting, script=(slow,)), tmp_path / "other")
    seconds = [e.seconds for e in fast.reported(events.RoundCommitted)]
    slowed = [e.seconds for e in late.reported(events.RoundCommitted)]
    assert all(3.5 < b / a < 6 for a, b in zip(seconds, slowed, strict=True))


def test_a_message_that_is_lost_or_corrupt_costs_a_connection(tmp_path):
    script = tuple(
        Tamper(when=OnMessage("Heartbeat", count=count, sender="anna"), harm=harm)
        for count, harm in ((2, "lose"), (5, "corrupt"))
    )
    outcome, wrong = play(Case(setting=SHORT, script=script), tmp_path)
    assert wrong == []
    left = [e for e in outcome.reported(events.PeerLeft) if "left" not in e.reason]
    assert len(left) == 2
    assert b"peer_left" in events_of(outcome)
