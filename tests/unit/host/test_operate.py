"""What an operator wants is decided like everything else: by records, and it outlives the host."""

from tests.unit.host.scene import BUILT_IN, SYNC, A, B, C, Scene

from atoll.host import operate
from atoll.host.effects import Drop
from atoll.net import records, wire


def will(scene, decide, *what):
    return scene.note(decide(scene.run, *what, now=scene.now))


def opened(scene):
    return [record.round for record in scene.recorded(records.Planned)]


def agree(scene, *peers):
    for peer in (BUILT_IN, *peers):
        scene.at_state(peer, scene.run.committed)
    scene.passes(SYNC.grace_floor_s + 0.1)


def test_a_paused_run_finishes_its_round_and_begins_no_other():
    scene = Scene()
    scene.join(BUILT_IN, A, B)
    scene.passes(3.0)
    will(scene, operate.pause)
    scene.delivers(A, B)
    scene.commits(BUILT_IN, A)
    agree(scene, A, B)
    scene.passes(100.0)
    assert (scene.run.committed, opened(scene)) == (1, [1])
    will(scene, operate.resume)
    scene.passes(SYNC.grace_floor_s + 0.1)
    assert opened(scene) == [1, 2]


def test_a_pause_outlives_the_host_and_so_does_its_end():
    scene = Scene()
    will(scene, operate.pause)
    again = scene.restart()
    assert again.run.is_paused
    again.join(BUILT_IN, A)
    again.passes(3.0)
    assert opened(again) == []
    will(again, operate.resume)
    assert not again.restart().run.is_paused


def test_pausing_twice_is_pausing_once():
    scene = Scene()
    assert will(scene, operate.resume) == []
    assert will(scene, operate.pause)
    assert will(scene, operate.pause) == []
    assert len(scene.recorded(records.Paused)) == 1


def test_a_removed_peer_is_told_dropped_and_its_samples_go_to_others():
    scene = Scene()
    scene.join(BUILT_IN, A, B)
    scene.passes(3.0)
    (lease,) = scene.run.book.held_by(A)
    will(scene, operate.remove, A, "it lies")
    assert scene.sent(wire.Refused, to=A)[0].final
    assert [effect.peer for effect in scene.effects if isinstance(effect, Drop)] == [A]
    assert A not in scene.run.membership
    assert scene.recorded(records.Removed) == [records.Removed(peer=A, reason="it lies")]
    (freed,) = scene.recorded(records.Released)
    assert (freed.peer, freed.leases) == (A, (lease.id,))
    scene.delivers(B)
    scene.commits(BUILT_IN, B)
    assert [e.peer for e in scene.recorded(records.Committed)[0].roster] == [B]


def test_what_a_removed_peer_had_delivered_when_the_round_closed_stays():
    scene = Scene()
    scene.join(BUILT_IN, A, B)
    scene.passes(3.0)
    scene.delivers(A, B)
    will(scene, operate.remove, A, "")
    scene.commits(BUILT_IN, B)
    assert {e.peer for e in scene.recorded(records.Committed)[0].roster} == {A, B}


def test_somebody_who_is_not_there_can_be_removed():
    scene = Scene()
    scene.join(BUILT_IN, A)
    will(scene, operate.remove, C, "")
    assert not any(isinstance(effect, Drop) for effect in scene.effects)
    assert scene.recorded(records.Removed)


def test_chosen_reducers_average_from_the_next_round_on_and_after_a_restart():
    scene = Scene()
    scene.join(BUILT_IN, A, B)
    scene.passes(3.0)
    before = scene.run.round.assignment
    assert set(before) == {A, B}
    will(scene, operate.choose_reducers, (BUILT_IN,))
    assert scene.run.round.assignment == before
    scene.delivers(A, B)
    scene.commits(BUILT_IN, A)
    agree(scene, A, B)
    assert set(scene.run.round.assignment) == {BUILT_IN}
    again = scene.restart()
    again.join(BUILT_IN, A, B, round_id=1)
    again.passes(31.0)
    assert set(again.run.round.assignment) == {BUILT_IN}
    will(again, operate.choose_reducers, ())
    assert again.run.chosen_reducers == frozenset()


def test_if_none_of_the_chosen_can_average_others_do():
    scene = Scene()
    will(scene, operate.choose_reducers, (C,))
    scene.join(BUILT_IN, A, B)
    scene.passes(3.0)
    assert set(scene.run.round.assignment) == {A, B}
