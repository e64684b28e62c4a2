"""What a round costs the host, when there are many members: counted, not timed."""

import pytest
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, NUM_SLICES, SYNC, Scene

from atoll.host.effects import Append, Send, SendCommits
from atoll.host.state import MEASURED
from atoll.ids import PeerId
from atoll.net import records, wire

FEW, MANY = 40, 400


def opening(num_peers: int) -> Scene:
    """Return a run of so many members, of which all can be reached, as it opens its first round."""
    scene = Scene.of(replace(SYNC, min_peers=num_peers))
    peers = [PeerId(f"{number:032x}") for number in range(num_peers)]
    scene.join(BUILT_IN, *peers)
    assert scene.run.round is not None
    assert scene.run.round.waited == set(peers)
    return scene


@pytest.fixture(scope="module")
def openings() -> tuple[Scene, Scene]:
    return opening(FEW), opening(MANY)


def test_what_a_member_hears_of_a_plan_does_not_grow_with_the_run(openings):
    few, many = (scene.sent(wire.Plan) for scene in openings)
    sizes_few, sizes_many = (
        [len(wire.encode(replace(plan, measure=()))) for plan in plans] for plans in (few, many)
    )
    assert max(sizes_many) <= max(sizes_few) + 8, "numbers of leases have more digits"
    assert {len(plan.measure) for plan in few} == {0}, "there are no regions"
    assert {len(plan.measure) for plan in many} == {MEASURED}


def test_all_leases_of_a_round_are_made_durable_at_once(openings):
    for scene, num_peers in zip(openings, (FEW, MANY), strict=True):
        appends = [e for e in scene.effects if isinstance(e, Append)]
        leased = [e for e in appends if isinstance(e.records[0], records.Leased)]
        assert [len(e.records) for e in leased] == [num_peers]
        first_plan = next(i for i, e in enumerate(scene.effects) if isinstance(e, Send))
        assert scene.effects.index(leased[0]) < first_plan


def test_messages_of_a_round_grow_in_proportion_to_the_members():
    counts = []
    for num_peers in (FEW, MANY):
        scene = opening(num_peers)
        sent = [e for e in scene.effects if isinstance(e, Send)]
        peers = sorted(scene.run.round.waited)
        for peer in peers[:-1]:
            scene.claims(peer)
        assert scene.effects == [], "a claim that ends no wait has no effect"
        scene.claims(peers[-1])
        sent += [e for e in scene.effects if isinstance(e, Send)]
        for peer in peers:
            scene.delivers(peer)
        scene.commits(peers[0], BUILT_IN)
        sent += [e for e in scene.effects if isinstance(e, SendCommits)]
        reductions = sum(isinstance(getattr(e, "message", None), wire.Reduce) for e in sent)
        counts.append((len(sent) - reductions, reductions))
    (few, jobs), (many, more_jobs) = counts
    groups = -(-MANY // SYNC.region_size) + 1
    assert (jobs, more_jobs) == (NUM_SLICES, groups * NUM_SLICES), "regions of so many, and a root"
    assert (few, many) == (3 * (FEW + 1), 3 * (MANY + 1)), "a plan, a roster, a commit for each"
