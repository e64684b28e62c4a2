"""One peer after the other is asked how good a state is, until one has said; the journal has it."""

from math import inf, nan

import pytest
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, CONFIG, GENESIS, A, B, C, Scene, state

from atoll import events
from atoll.config import EvaluationConfig, canonical
from atoll.host.evaluation import ANSWER_S, is_due
from atoll.ids import RoundId
from atoll.net import records, wire

FIRST = RoundId(1)


@pytest.fixture
def scene():
    """Round 1 is committed, and whoever has its state is about to report it."""
    config = replace(CONFIG, evaluation=EvaluationConfig(every_rounds=1))
    scene = Scene([replace(GENESIS, config=canonical(config).decode())])
    scene.join(BUILT_IN, A, B, C)
    scene.passes(3.0)
    scene.delivers(A, B, C)
    scene.commits(BUILT_IN, A)
    return scene


def reports(scene, *peers):
    """Let these report state 1; return whom the host asks about it."""
    found = []
    speeds = {BUILT_IN: 9.0, A: 1.0, B: 2.0, C: 1.5}
    for peer in peers:
        at = wire.AtState(round=FIRST, state=state(1), device="cpu", samples_per_s=speeds[peer])
        scene.says(peer, at)
        found += asked(scene)
    return found


def asked(scene):
    """Return whom the last event made the host ask."""
    return [peer for peer in (BUILT_IN, A, B, C) if scene.sent(wire.Evaluate, to=peer)]


def said(loss=3.5, *, round_id=FIRST):
    return wire.Evaluated(round=round_id, loss=loss, text="The reef")


def on_record(scene):
    return [(one.round, one.peer, one.loss) for one in scene.recorded(records.Evaluated)]


def test_the_quickest_that_has_the_state_is_asked_once_it_is_agreed_on(scene):
    assert reports(scene, BUILT_IN, C, A) == [C], "of those that have it when it is agreed on"
    assert scene.run.is_asking
    assert reports(scene, B) == [], "somebody is at it"
    (report,) = [e for e in scene.says(C, said()) if getattr(e, "event", None)]
    assert report.event == events.Evaluated(round=FIRST, peer=C, loss=3.5, text="The reef")
    assert on_record(scene) == [(1, C, 3.5)]
    assert scene.recorded(records.Evaluated)[0].state == state(1)
    assert not scene.run.is_asking
    scene.says(C, said(9.9))
    scene.passes(2 * ANSWER_S)
    assert (asked(scene), len(on_record(scene))) == ([], 1), "once is enough"
    again = scene.restart()
    again.join(BUILT_IN, A, B, C, round_id=1)
    assert (again.run.evaluated, again.run.asking) == (1, None)


@pytest.mark.parametrize("answer", [None, nan, inf])
def test_who_cannot_say_is_asked_no_more(scene, answer):
    reports(scene, BUILT_IN, A, B, C)
    tried = []
    while scene.run.is_asking:
        tried.append(scene.run.asking.peer)
        scene.says(tried[-1], said(answer))
    assert sorted(tried) == [A, B, C], "each trainer once, the built-in member never"
    scene.passes(2 * ANSWER_S)
    assert (asked(scene), on_record(scene)) == ([], [])


def test_who_says_nothing_or_is_gone_makes_room_for_the_next(scene):
    (first,) = reports(scene, BUILT_IN, A, B, C)
    scene.passes(ANSWER_S - 1)
    assert asked(scene) == []
    scene.passes(2)
    (second,) = asked(scene)
    scene.lost(second)
    (third,) = asked(scene)
    assert {first, second, third} == {A, B, C}
    scene.says(first, said(4.0))  # better late than never
    assert on_record(scene) == [(1, first, 4.0)]


def test_nobody_is_believed_who_was_not_asked_about_that_state(scene):
    (peer,) = reports(scene, BUILT_IN, A, B, C)
    for other in {A, B, C} - {peer}:
        scene.says(other, said())
    scene.says(peer, said(round_id=RoundId(2)))
    assert on_record(scene) == []
    assert scene.run.is_asking


@pytest.mark.parametrize(
    ("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (7, [5])]
)
def test_some_states_are_due_and_the_last_one(every, due):
    config = replace(
        CONFIG,
        evaluation=EvaluationConfig(every_rounds=every),
        sync=replace(CONFIG.sync, rounds=5),
    )
    assert [r for r in range(6) if is_due(config, RoundId(r))] == due
