"""A run of twelve peers in four regions, two groups above these, and a root."""

from msgspec.structs import replace
from tests.unit.host.scene import (
    BUILT_IN,
    NUM_SLICES,
    SYNC,
    Scene,
    delivered,
    held,
    reduced_at,
    state,
)

from atoll.host.effects import Send
from atoll.host.open_round import Phase
from atoll.host.run import LONGEST_TRIP_S, on_message
from atoll.host.state import MEASURED
from atoll.ids import PeerId, RoundId
from atoll.net import records, wire

PEERS = tuple(PeerId(digit * 32) for digit in "01245689acde")  # three of a quarter
SIZE = 3
TREE = (4, 2, 1)
NUM_REGIONS, NUM_BELOW_ROOT = 4, 6
OF_REGIONS = NUM_REGIONS * NUM_SLICES  # places


def opening(*peers: PeerId, unreachable: tuple[PeerId, ...] = ()) -> Scene:
    scene = Scene.of(replace(SYNC, region_size=SIZE, min_peers=len(peers or PEERS)))
    for peer in (BUILT_IN, *(peers or PEERS)):
        scene.join(peer, reachable=peer not in unreachable)
    assert scene.run.round is not None
    return scene


def reducer(scene: Scene, group: int, k: int = 0) -> PeerId:
    rnd = scene.run.round
    return rnd.assignment[rnd.tree.place(group, k)]


def region_of(scene: Scene, peer: PeerId) -> int:
    return scene.run.round.regions[peer]


def members(scene: Scene, region: int) -> set[PeerId]:
    return {peer for peer, its in scene.run.round.regions.items() if its == region}


def claimed() -> Scene:
    """Return a run in which all have announced what they bring."""
    scene = opening()
    for peer in PEERS:
        scene.claims(peer)
    return scene


def delivered_all() -> Scene:
    scene = claimed()
    scene.delivers(*PEERS)
    assert scene.run.round.phase is Phase.REDUCE
    return scene


def sends_plan(effect: object) -> bool:
    return isinstance(effect, Send) and isinstance(effect.message, wire.Plan)


def test_each_member_hears_of_the_reducers_of_its_region_alone():
    scene = opening()
    rnd = scene.run.round
    assert rnd.tree.widths == TREE
    for peer in PEERS:
        (plan,) = scene.sent(wire.Plan, to=peer)
        assert {r.reducer.peer for r in plan.reductions} <= members(scene, region_of(scene, peer))
    (plan,) = scene.sent(wire.Plan, to=BUILT_IN)
    assert {r.reducer.peer for r in plan.reductions} == {
        reducer(scene, rnd.tree.root, k) for k in range(NUM_SLICES)
    }


def test_a_region_without_anybody_who_can_reduce_has_a_reducer_from_another_one():
    scene = opening(unreachable=(*PEERS[:3], *PEERS[4:6]))
    region = region_of(scene, PEERS[0])
    for k in range(NUM_SLICES):
        other = reducer(scene, region, k)
        assert region_of(scene, other) != region
        (plan,) = scene.sent(wire.Plan, to=other)
        assert any(k in range(run.start, run.stop) for run in plan.also)


def test_with_nobody_to_reduce_but_the_built_in_member_there_is_one_region():
    scene = opening(unreachable=PEERS)
    assert scene.run.round.tree.widths == (1,)
    assert set(scene.run.round.assignment) == {BUILT_IN}


def test_every_sum_is_asked_for_once_with_what_is_above_and_below():
    scene = claimed()
    tree = scene.run.round.tree
    jobs = scene.sent(wire.Reduce)
    assert len(jobs) == tree.num_places
    for job in jobs:
        group = tree.root if job.group is None else job.group
        assert [part.group for part in job.parts] == list(tree.children(group))
        assert {one.peer for one in job.inputs} == members(scene, group)
        parent = tree.parent(group)
        expected = None if parent is None else reducer(scene, parent, job.slice)
        assert (job.parent and job.parent.peer) == expected


def test_the_commit_names_regions_and_their_partial_sums():
    scene = delivered_all()
    scene.commits(PEERS[0], BUILT_IN)
    (commit,) = scene.recorded(records.Committed)
    assert [entry.region for entry in commit.roster] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [len(digests) for digests in commit.partials] == [NUM_SLICES] * NUM_BELOW_ROOT
    assert len(set(sum(commit.partials, ()))) == NUM_BELOW_ROOT * NUM_SLICES


def test_a_reducer_that_says_of_how_many_sums_it_is_made_wrongly_is_not_heard():
    scene = delivered_all()
    rnd = scene.run.round
    place = rnd.tree.place(rnd.tree.root, 0)
    scene.says(rnd.assignment[place], replace(reduced_at(rnd, place), parts=()))
    scene.says(rnd.assignment[place], replace(reduced_at(rnd, place), group=99))
    assert place not in rnd.reduced


def test_a_regional_reducer_that_is_lost_concerns_its_region_alone():
    scene = delivered_all()
    rnd, lost = scene.run.round, reducer(scene, 1)
    before = rnd.assignment
    scene.lost(lost)
    after = scene.run.round.assignment
    moved = [place for place in range(rnd.tree.num_places) if before[place] != after[place]]
    groups = {rnd.tree.group_and_slice(place)[0] for place in moved}
    assert 1 in groups
    told = {peer for peer in PEERS if scene.sent(wire.Plan, to=peer)}
    reducers = {after[place] for place in moved}
    expected = set().union(reducers, *(members(scene, group) for group in groups))
    assert told == (expected & set(PEERS)) - {lost}
    assert set(rnd.completed_at) == set(PEERS) - members(scene, 1)
    # The one above fetches the partial sum from the new one, unless it has it.
    above = {job.group for job in scene.sent(wire.Reduce)}
    assert rnd.tree.parent(1) in above


def test_what_was_made_of_a_partial_sum_is_good_when_its_reducer_is_lost():
    scene = delivered_all()
    version = scene.reduces()
    scene.lost(next(one for one in PEERS if one in scene.run.round.assignment[:OF_REGIONS]))
    rnd = scene.run.round
    for place in rnd.tree.places(rnd.tree.root):  # one that was above, too, forms the same again
        scene.says(rnd.assignment[place], reduced_at(rnd, place))
    left = [peer for peer in PEERS if scene.run.membership.is_connected(peer)]
    for peer in (left[0], BUILT_IN):
        scene.says(peer, held(version=version))
    assert scene.run.committed == 1
    (commit,) = scene.recorded(records.Committed)
    assert [len(digests) for digests in commit.partials] == [NUM_SLICES] * NUM_BELOW_ROOT


def test_whoever_is_lost_above_the_regions_no_contributor_is_asked_for_anything():
    scene = delivered_all()
    rnd, before = scene.run.round, scene.run.round.assignment
    scene.reduces()
    scene.lost(min(set(before[OF_REGIONS:]) - set(before[:OF_REGIONS])))
    assert set(rnd.completed_at) == set(PEERS)
    moved = [
        rnd.tree.group_and_slice(place)
        for place, (old, new) in enumerate(zip(before, rnd.assignment, strict=True))
        if old != new
    ]
    # Those below fetch the update from another one now; the root has what it needs.
    asked = {(job.group, job.slice): job for job in scene.sent(wire.Reduce)}
    assert set(asked) == {(g, k) for group, k in moved for g in (group, *rnd.tree.children(group))}
    for group, k in moved:
        parents = {asked[child, k].parent.peer for child in rnd.tree.children(group)}
        assert parents == {reducer(scene, group, k)}


def test_who_comes_later_joins_the_smallest_region_and_comes_back_to_it():
    scene = opening(*PEERS[:11])
    late = PeerId("7" * 32)
    scene.join(late)
    sizes = [len(members(scene, region)) for region in range(NUM_REGIONS)]
    assert sizes == [SIZE] * NUM_REGIONS
    assert scene.run.round.tree.widths == TREE, "and it is not divided anew"
    region = region_of(scene, late)
    scene.lost(late)
    scene.join(late)
    assert region_of(scene, late) == region


def test_a_round_that_opens_with_few_is_divided_anew_when_many_have_come():
    """No region has more than it should while there is somebody to reduce for each."""
    scene = Scene.of(replace(SYNC, region_size=SIZE, min_peers=2))
    scene.join(BUILT_IN, *PEERS[:2])
    rnd = scene.run.round
    assert (rnd.tree.widths, rnd.regions) == ((1,), {})
    scene.delivers(PEERS[0])
    told: dict[PeerId, wire.Plan] = {}
    for peer in PEERS[2:]:
        scene.join(peer)
        told |= {e.peer: e.message for e in scene.effects if sends_plan(e)}
        assert rnd.largest_region <= SIZE
    for one, plan in told.items():
        named = {k: r.reducer.peer for r in plan.reductions for k in range(r.start, r.stop)}
        assert named == {k: reducer(scene, rnd.group_of(one), k) for k in range(NUM_SLICES)}
    assert set(PEERS) <= set(told)
    assert rnd.tree.num_regions >= NUM_REGIONS
    assert not rnd.completed_at, "whoever has delivered says so again"
    scene.delivers(*reversed(PEERS))  # the round is there for the first two
    scene.commits(PEERS[0], BUILT_IN)
    (commit,) = scene.recorded(records.Committed)
    assert {entry.peer for entry in commit.roster} == set(PEERS)
    assert commit.widths == rnd.tree.widths


def test_a_contributor_that_is_lost_with_a_slice_missing_makes_all_partial_sums_void():
    """All shares change, so all sums do."""
    scene = delivered_all()
    rnd, version = scene.run.round, scene.reduces()
    gone = next(one for one in PEERS if one not in rnd.assignment[:OF_REGIONS])
    scene.lost(gone)
    scene.lost(reducer(scene, region_of(scene, gone)))
    left = [peer for peer in PEERS if scene.run.membership.is_connected(peer)]
    for _ in range(10):
        scene.delivers(*left)
        scene.passes(SYNC.grace_floor_s)
    assert rnd.roster_version > version
    assert {share.peer for share in rnd.roster} == set(left)
    assert not rnd.reduced
    assert not rnd.parts


def test_a_slow_regional_reducer_is_relieved_by_others_of_its_region():
    scene = claimed()
    rnd, slow = scene.run.round, reducer(scene, 1)
    rnd.usual_wait_s = 60.0  # so that the round stays open for long enough
    for peer in PEERS:
        for k in range(NUM_SLICES):
            by = rnd.assignment[rnd.tree.place(region_of(scene, peer), k)]
            if by != slow:
                scene.says(by, delivered(peer, k))
    assert rnd.phase is Phase.COLLECT
    scene.passes(10.0)
    assert slow not in rnd.assignment
    places = rnd.tree.places(1)
    assert set(rnd.assignment[places.start : places.stop]) <= members(scene, 1)


def test_who_adds_up_says_whom_it_cannot_reach():
    scene = delivered_all()
    rnd = scene.run.round
    above = reducer(scene, rnd.tree.parent(2))
    below = reducer(scene, 2)
    scene.says(above, wire.Unreachable(round=rnd.id, reducer=below))
    assert below not in scene.run.round.assignment[:OF_REGIONS]


def test_who_cannot_reach_most_of_those_below_is_out_of_reach_itself():
    scene = delivered_all()
    rnd = scene.run.round
    tree, parent = rnd.tree, rnd.tree.parent(0)
    above = reducer(scene, parent)
    its = [k for k in range(NUM_SLICES) if reducer(scene, parent, k) == above]
    below = {reducer(scene, child, k) for child in tree.children(parent) for k in its}
    complaints = [wire.Unreachable(round=rnd.id, reducer=one) for one in sorted(below)]
    scene.note([e for one in complaints for e in on_message(scene.run, above, one, now=scene.now)])
    assert above not in rnd.assignment
    assert below <= set(rnd.assignment)


def test_who_has_added_up_already_has_nobody_to_complain_about():
    scene = delivered_all()
    rnd, before = scene.run.round, scene.run.round.assignment
    scene.reduces()
    for group in range(NUM_REGIONS):
        above = reducer(scene, rnd.tree.parent(group))
        scene.says(above, wire.Unreachable(round=rnd.id, reducer=reducer(scene, group)))
    assert rnd.assignment == before


def test_whoever_takes_over_above_the_regions_has_time_of_its_own():
    scene = delivered_all()
    rnd = scene.run.round
    tree, slow = rnd.tree, rnd.tree.parent(0)
    for group in (*range(NUM_REGIONS), slow + 1):
        for place in tree.places(group):
            scene.says(rnd.assignment[place], reduced_at(rnd, place))
    before = rnd.assignment
    scene.passes(5.0)
    after = rnd.assignment
    places = tree.places(slow)
    assert all(before[place] != after[place] for place in places)
    scene.passes(1.0)
    assert rnd.assignment == after


def test_who_waits_for_a_sum_that_is_to_be_formed_again_is_not_late():
    scene = delivered_all()
    rnd = scene.run.round
    tree, last = rnd.tree, NUM_SLICES - 1
    waiting = tree.place(tree.parent(0), last)
    for place in range(tree.places(tree.root).start):
        if place != waiting:
            scene.says(rnd.assignment[place], reduced_at(rnd, place))
    waits, gone = rnd.assignment[waiting], reducer(scene, 0, last)
    scene.says(waits, wire.Unreachable(round=rnd.id, reducer=gone))
    again = reducer(scene, 0, last)
    assert again not in (gone, waits)
    for peer in members(scene, 0):
        scene.says(again, delivered(peer, last))
    scene.passes(5.0)
    assert again not in rnd.assignment
    assert rnd.assignment[waiting] == waits


def test_whoever_has_no_sum_to_form_is_not_late_with_it():
    scene = opening()
    rnd, empty = scene.run.round, NUM_REGIONS - 1
    scene.delivers(*(peer for peer in PEERS if peer not in members(scene, empty)))
    scene.passes(100.0)
    assert rnd.phase is Phase.REDUCE
    assert empty not in rnd.populated
    before = rnd.assignment
    for place in (place for group in (1, 2) for place in rnd.tree.places(group)):
        scene.says(rnd.assignment[place], reduced_at(rnd, place))
    scene.passes(60.0)  # the grace time
    moved = {k for k, (a, b) in enumerate(zip(before, rnd.assignment, strict=True)) if a != b}
    groups = {rnd.tree.group_and_slice(place)[0] for place in moved}
    assert 0 in groups
    assert empty not in groups


# --- by measured distance ------------------------------------------------------------------------


AT_STATE = wire.AtState(round=RoundId(0), state=state(0), device="cpu")
EAST = frozenset(PEERS[::2])


def seconds(one: PeerId, other: PeerId) -> float:
    return 0.02 if (one in EAST) == (other in EAST) else 0.2


def measures(scene: Scene, peer: PeerId, others, *, round_id: int = 1) -> None:
    """Let the peer say at its next state how far away these are."""
    trips = tuple(wire.RoundTrip(peer=other, seconds=seconds(peer, other)) for other in others)
    at = wire.AtState(
        round=RoundId(round_id), state=state(round_id), device="cpu", round_trips=trips
    )
    scene.says(peer, at)


def test_members_are_asked_once_to_measure_others_and_are_then_in_a_region_with_those_near_them():
    scene = opening()
    asked = {}
    for peer in PEERS:
        (plan,) = scene.sent(wire.Plan, to=peer)
        asked[peer] = [address.peer for address in plan.measure]
        assert peer not in asked[peer]
        assert len(set(asked[peer])) == len(asked[peer]) == MEASURED == len(PEERS)
    scene.delivers(*PEERS)
    scene.commits(PEERS[0], BUILT_IN)
    scene.at_state(BUILT_IN, 1)
    for peer in PEERS:
        measures(scene, peer, [other for other in asked[peer] if other != BUILT_IN])
    rnd = scene.run.round
    assert rnd.id == 2
    for region in range(rnd.tree.num_regions):
        inside = members(scene, region)
        assert len(inside) <= SIZE
        assert inside <= EAST or inside.isdisjoint(EAST)
    assert not any(plan.measure for peer in PEERS for plan in scene.sent(wire.Plan, to=peer))


def test_what_is_no_round_trip_is_none():
    scene = opening()
    one = PEERS[0]
    trips = [(one, 0.1), (PEERS[1], 0.0), (PEERS[2], -1.0), (PEERS[3], 1e300)]
    trips += [(PEERS[4], float("nan")), (PEERS[5], float("inf")), (PEERS[6], 0.1)]
    told = tuple(wire.RoundTrip(peer=peer, seconds=seconds) for peer, seconds in trips)
    scene.says(one, replace(AT_STATE, round_trips=told))
    assert scene.run.round_trips == {one: {PEERS[3]: LONGEST_TRIP_S, PEERS[6]: 0.1}}
    many = [PeerId(f"{number:032x}") for number in range(100)]
    for start in range(0, 100, 10):
        told = tuple(wire.RoundTrip(peer=p, seconds=0.1) for p in many[start : start + 10])
        scene.says(one, replace(AT_STATE, round_trips=told))
    assert list(scene.run.round_trips[one]) == many[-wire.MAX_ROUND_TRIPS :]


def test_a_run_without_regions_asks_for_no_round_trips():
    scene = Scene.of(replace(SYNC, region_size=len(PEERS) + 1))
    scene.join(BUILT_IN, *PEERS)
    assert not any(plan.measure for plan in scene.sent(wire.Plan))
