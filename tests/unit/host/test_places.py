"""Who reduces what, of what the host knows of its members."""

from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, SLICE_BYTES, SYNC, A, B, C, D, Scene

from atoll.exchange.regions import Volumes
from atoll.host.membership import Member
from atoll.host.places import (
    FORGOTTEN_ABOVE,
    MOST_ROUNDS_OUT,
    division,
    let_sit_out,
    locate,
    reducers,
    replaced,
)
from atoll.ids import PeerId, RoundId

FIRST = RoundId(1)


def opened() -> Scene:
    """Return a run whose first round is open; A and B reduce a slice each, C none."""
    scene = Scene.of(SYNC)
    scene.join(BUILT_IN, A, B, C)
    scene.run.round.assignment = (A, B)
    return scene


def test_who_was_no_good_in_a_round_gets_slices_of_others_only_if_nobody_else_is_left():
    run = opened().run
    rnd, lost = run.round, frozenset({A})
    assert replaced(run, rnd, lost) == (C, B)
    rnd.excluded = {C}
    assert replaced(run, rnd, lost) == (B, B)
    rnd.excluded = {B, C, BUILT_IN}
    assert set(replaced(run, rnd, lost)) <= {B, C}


def test_a_lost_reducer_is_worse_than_one_that_was_no_good():
    run = opened().run
    for peer in (B, C):
        run.membership.remove(peer)
    run.round.excluded = {BUILT_IN}
    assert replaced(run, run.round, frozenset({A, B})) == (BUILT_IN, BUILT_IN)


def test_those_that_the_operator_has_chosen_reduce_as_long_as_one_of_them_can():
    run = opened().run
    assert reducers(run, FIRST) == [A, B, C], "in the order of ids, and not the built-in one"
    run.chosen_reducers = frozenset({D, C, BUILT_IN})
    assert reducers(run, FIRST) == [C, BUILT_IN]
    run.chosen_reducers = frozenset({D})
    assert reducers(run, FIRST) == [A, B, C], "a stranger, or one that is away, reduces nothing"


def test_who_had_to_be_relieved_sits_out_twice_as_long_each_time():
    """From the newest open round on; where none is open, from the newest commit on."""
    run = opened().run
    run.open_rounds[RoundId(2)] = run.open_rounds[FIRST]
    pauses = []
    for _ in range(9):
        let_sit_out(run, {A})
        pauses.append(run.sitting_out[A].num_rounds)
        assert run.sitting_out[A].until == 2 + pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, MOST_ROUNDS_OUT, MOST_ROUNDS_OUT]
    assert reducers(run, FIRST) == [B, C]
    run.open_rounds.clear()
    let_sit_out(run, {B})
    assert run.sitting_out[B].until == run.committed + 1


def test_without_regions_nobody_is_looked_for():
    peers = [PeerId(f"{number:032x}") for number in range(6)]
    trips = {peer: {to: 0.1 for to in peers if to != peer} for peer in peers}
    for size, is_found in ((0, False), (2, True)):
        run = Scene.of(replace(SYNC, region_size=size)).run
        run.round_trips = dict(trips)
        for peer in peers:
            run.membership.enter(Member(peer=peer, name="", trains=True), now=0.0)
        locate(run)
        assert bool(run.positions) == is_found


def test_lines_of_those_who_contribute_count_and_of_those_who_are_not_ready_do_not():
    scene = opened()
    scene.hello(D)
    assert set(division(scene.run, FIRST, [A, BUILT_IN]).links) == {A, B, C, BUILT_IN}
    links = division(scene.run, FIRST, [A]).links
    assert [links[peer].reduces for peer in (A, B, C)] == [True, False, False]


def test_contributions_updates_and_partial_sums_are_of_different_sizes():
    run = opened().run
    run.contribution_bytes, run.partial_bytes = (100,), (400,)
    volumes = Volumes(contribution=100, update=sum(SLICE_BYTES), partial=400)
    assert division(run, FIRST, [A]).volumes == volumes


def test_what_those_have_measured_who_are_gone_is_forgotten_when_it_is_much():
    scene = Scene.of(replace(SYNC, region_size=2))
    scene.join(BUILT_IN, A, B, C)
    run, here = scene.run, (BUILT_IN, A, B, C)
    gone = [PeerId(f"{number:032x}") for number in range((FORGOTTEN_ABOVE - 1) * len(here))]
    run.round_trips = {peer: {A: 0.1} for peer in (*here, *gone)}
    locate(run)
    assert set(run.round_trips) == {*here, *gone}, "they may come back"
    run.round_trips[D] = {A: 0.1}
    locate(run)
    assert set(run.round_trips) == set(here)
