"""Who reduces what, of what the host knows of its members."""

from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, SLICE_BYTES, SYNC, A, B, C, D, Scene

from atoll.exchange.regions import Volumes
from atoll.host.places import FORGOTTEN_ABOVE, division, locate, replaced
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
