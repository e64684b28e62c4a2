"""Several open rounds at once, each of another fragment: opened, closed and committed in order."""

import pytest
from msgspec.structs import replace
from tests.unit.host.scene import (
    BUILT_IN,
    CONFIG,
    SYNC,
    A,
    B,
    C,
    Scene,
    contribution,
    delivered,
    held,
    reduced,
    state,
)

from atoll.host.open_round import Phase
from atoll.ids import LeaseId
from atoll.net import records, wire

SLICES = ((7, 8), (7, 8), (7, 8))  # bytes of the updates of each third
THIRDS = replace(SYNC, mode="overlap", fragments=3, inner_steps=6, in_flight=2, rounds=100)
PER_ROUND = 4  # samples of one peer


def scene_of(*peers, reachable=True, **changes) -> Scene:
    scene = Scene.of(replace(THIRDS, **changes), slice_bytes=SLICES)
    scene.join(BUILT_IN)
    scene.join(*peers, reachable=reachable)
    return scene


def claims(scene, peer, round_id, *lease_ids, digests=None) -> None:
    """Let the peer announce these leases for the round; or what it did before; or its next."""
    rounds = scene.run.open_rounds
    before = {id_: rnd.claims[peer].leases for id_, rnd in rounds.items() if peer in rnd.claims}
    named = {lease_id for ids in before.values() for lease_id in ids}
    free = [one.id for one in scene.run.book.held_by(peer) if one.id not in named]
    ids = lease_ids or before.get(round_id) or free[:1]
    claim = contribution(peer, round_id=round_id, lease_ids=ids)
    scene.says(peer, claim if digests is None else replace(claim, digests=digests))


def delivers(scene, round_id, *peers) -> None:
    for peer in peers:
        claims(scene, peer, round_id)
        for k in range(2):
            rnd = scene.run.open_rounds[round_id]
            scene.says(rnd.assignment[k], delivered(peer, k, round_id=round_id))


def all_hold(scene, round_id) -> None:
    """Let the updates of the round be formed, and everyone have them."""
    rnd = scene.run.open_rounds[round_id]
    for k in range(2):
        message = reduced(k, version=rnd.roster_version, round_id=round_id)
        scene.says(rnd.assignment[k], message)
    for member in scene.run.membership.connected():
        scene.says(member.peer, held(version=rnd.roster_version, round_id=round_id))


def all_at(scene, round_id) -> None:
    for member in scene.run.membership.connected():
        scene.at_state(member.peer, round_id)


def open_ids(scene) -> list[int]:
    return list(scene.run.open_rounds)


# --- opening -------------------------------------------------------------------------------------


def test_the_next_round_opens_when_the_first_contribution_is_announced():
    scene = scene_of(A, B)
    assert open_ids(scene) == [1]
    scene.passes(100)
    assert open_ids(scene) == [1]
    claims(scene, A, 1)
    assert open_ids(scene) == [1, 2]
    assert {plan.round for plan in scene.sent(wire.Plan)} == {2}
    assert scene.run.open_rounds[2].waited == {A, B}
    assert [record.round for record in scene.recorded(records.Planned)] == [1, 2]


def test_no_more_rounds_are_open_than_may_be_in_flight():
    scene = scene_of(A, B)
    claims(scene, A, 1)
    claims(scene, A, 2)
    scene.passes(100)
    assert open_ids(scene) == [1, 2]
    delivers(scene, 1, A, B)
    all_hold(scene, 1)
    assert (scene.run.committed, open_ids(scene)) == (1, [2])
    all_at(scene, 1)  # its fragment has its turn again once all have taken the step
    assert open_ids(scene) == [2, 3]


def test_with_one_in_flight_a_claim_opens_nothing():
    scene = scene_of(A, B, in_flight=1)
    claims(scene, A, 1)
    assert open_ids(scene) == [1]


def test_each_peer_holds_the_work_of_the_rounds_in_flight_and_one_more():
    scene = scene_of(A)
    granted = [len(record.leases) for record in scene.recorded(records.Leased)]
    assert granted == [1, 1, 1]
    claims(scene, A, 1)
    claims(scene, A, 2)
    assert len(scene.run.book.held_by(A)) == 3
    delivers(scene, 1, A)
    all_hold(scene, 1)
    all_at(scene, 1)
    (plan,) = [plan for plan in scene.sent(wire.Plan, to=A) if plan.round == 3]
    assert [one.id for one in plan.leases] == [2, 3, 4]
    assert plan.first_step == 2 * 2


def test_the_last_rounds_give_no_work_ahead():
    scene = scene_of(A, rounds=2)
    assert len(scene.recorded(records.Leased)) == 2
    claims(scene, A, 1)
    claims(scene, A, 2)
    scene.passes(100)
    assert open_ids(scene) == [1, 2]


def test_who_comes_while_two_are_open_is_invited_to_both():
    scene = scene_of(A, B)
    claims(scene, A, 1)
    scene.hello(C)
    scene.probed(C)
    scene.at_state(C, 0)
    assert [plan.round for plan in scene.sent(wire.Plan, to=C)] == [1, 2]
    assert C in scene.run.open_rounds[1].invited & scene.run.open_rounds[2].invited


def test_a_step_brings_no_plan_a_second_time():
    scene = scene_of(A, B)
    claims(scene, A, 1)
    delivers(scene, 1, A, B)
    all_hold(scene, 1)
    assert (scene.run.committed, open_ids(scene)) == (1, [2])
    scene.at_state(A, 1)
    assert scene.sent(wire.Plan) == []
    scene.at_state(A, 1)  # said again, it has begun anew
    assert [plan.round for plan in scene.sent(wire.Plan, to=A)] == [2]


# --- in order ------------------------------------------------------------------------------------


def test_a_round_waits_for_the_one_before_it_to_close_and_to_be_agreed_on():
    scene = scene_of(A, B)
    claims(scene, A, 1)
    delivers(scene, 2, A, B)
    scene.passes(100)
    assert scene.run.open_rounds[2].phase is Phase.COLLECT
    delivers(scene, 1, A, B)
    assert [rnd.phase for rnd in scene.run.open_rounds.values()] == [Phase.REDUCE] * 2
    all_hold(scene, 2)
    assert scene.run.committed == 0
    all_hold(scene, 1)
    assert scene.run.committed == 1
    scene.passes(1)
    assert scene.run.committed == 1  # nobody has said what state 1 is
    scene.at_state(A, 1)
    scene.at_state(B, 1)
    assert scene.run.committed == 2
    kinds = [r for r in scene.journal if isinstance(r, records.Committed | records.Agreed)]
    assert [(type(r), r.round) for r in kinds][-3:] == [
        (records.Committed, 1),
        (records.Agreed, 1),
        (records.Committed, 2),
    ]


@pytest.mark.parametrize("is_late", [False, True])
def test_a_round_commits_what_is_in_it_and_not_in_one_before(is_late):
    """C's second contribution has the work of its first one in it: it is the first's, if it can."""
    scene = scene_of(A, B, C)
    first, second, *_ = (one.id for one in scene.run.book.held_by(C))
    delivers(scene, 1, A, B)
    claims(scene, C, 1, first)
    claims(scene, C, 2, first, second)
    if is_late:
        scene.passes(100)
    else:
        delivers(scene, 1, C)
    delivers(scene, 2, A, B, C)
    (share,) = (s for s in scene.run.open_rounds[2].roster if s.peer == C)
    assert share.num_tokens == (2 if is_late else 1) * PER_ROUND * CONFIG.data.sequence_length
    all_hold(scene, 1)
    all_at(scene, 1)
    all_hold(scene, 2)
    committed = [
        [entry.leases for entry in commit.roster if entry.peer == C]
        for commit in scene.recorded(records.Committed)
    ]
    assert committed == ([[], [(first, second)]] if is_late else [[(first,)], [(second,)]])


def test_a_roster_that_changes_opens_those_that_counted_on_it():
    scene = scene_of(A, B, C)
    first, second, *_ = (one.id for one in scene.run.book.held_by(C))
    claims(scene, A, 1)
    claims(scene, C, 2, first, second)
    delivers(scene, 1, A, B)
    claims(scene, C, 1, first)
    delivers(scene, 1, C)
    delivers(scene, 2, A, B, C)
    one, two = scene.run.open_rounds.values()
    assert [rnd.phase for rnd in (one, two)] == [Phase.REDUCE] * 2
    version = two.roster_version
    del one.delivered[C]  # lost with a reducer, and C does not bring it again
    one.completed_at.pop(C)
    scene.passes(300)
    assert [share.peer for share in one.roster] == [A, B]
    assert two.roster_version > version
    assert [s.num_tokens for s in two.roster if s.peer == C] == [
        2 * PER_ROUND * CONFIG.data.sequence_length
    ]


def test_weights_count_what_earlier_open_rounds_have_of_a_peer():
    """Round 2 brings to its fragment what round 1 has brought to another, and its own leases."""
    scene = scene_of(A, B)
    for peer in (A, B):
        delivers(scene, 1, peer)
    scene.passes(0)
    roster = scene.run.open_rounds[1].roster
    assert scene.run.fresh_tokens(A, 1) == 0
    assert scene.run.fresh_tokens(A, 2) == roster[0].num_tokens > 0
    assert scene.run.fresh_tokens(C, 2) == 0


# --- leases --------------------------------------------------------------------------------------


def test_a_contribution_of_which_a_roster_before_it_has_all_is_none():
    scene = scene_of(A, B)
    claims(scene, A, 1, LeaseId(1))
    claims(scene, A, 2, LeaseId(1))  # it has begun anew
    assert A in scene.run.open_rounds[2].claims, "the first round may do without it"
    delivers(scene, 1, A, B)
    assert A not in scene.run.open_rounds[2].claims
    claims(scene, A, 2, LeaseId(1))
    assert A not in scene.run.open_rounds[2].claims
    claims(scene, A, 2, LeaseId(1), LeaseId(2))
    assert A in scene.run.open_rounds[2].claims


def test_a_peer_may_name_what_was_committed_before_it_has_heard_of_that():
    scene = scene_of(A, B)
    delivers(scene, 1, A, B)
    all_hold(scene, 1)
    first = 1
    claims(scene, A, 2, LeaseId(first), *[scene.run.book.held_by(A)[0].id])
    assert A in scene.run.open_rounds[2].claims


def test_a_roster_keeps_its_leases_whatever_is_claimed_later():
    scene = scene_of(A)
    delivers(scene, 1, A)
    delivers(scene, 2, A)
    assert [rnd.phase for rnd in scene.run.open_rounds.values()] == [Phase.REDUCE] * 2
    claims(scene, A, 1, LeaseId(2))
    claims(scene, A, 2, LeaseId(1))
    all_hold(scene, 1)
    all_at(scene, 1)
    all_hold(scene, 2)
    commits = scene.recorded(records.Committed)
    assert [entry.leases for commit in commits for entry in commit.roster] == [(1,), (2,)]


def test_leases_of_one_that_left_stay_while_any_open_round_may_commit_them():
    scene = scene_of(A, B, reachable=False)  # what they deliver stays at the built-in member
    claims(scene, A, 1)
    delivers(scene, 1, A, B)
    delivers(scene, 2, A)
    scene.says(A, wire.Leaving(reason="it left"))
    assert scene.recorded(records.Released) == []
    all_hold(scene, 1)
    all_at(scene, 1)
    delivers(scene, 2, B)
    all_hold(scene, 2)
    assert scene.run.committed == 2
    scene.tick()
    (released,) = scene.recorded(records.Released)
    assert len(released.leases) == 1  # of three, two are committed


# --- faults --------------------------------------------------------------------------------------


def test_rounds_after_one_that_collects_again_do_so_with_what_was_claimed():
    """Nobody of the first roster is left; what the next one closes with depends on that."""
    scene = scene_of(A, B, C)
    claims(scene, B, 1)
    delivers(scene, 1, A, C)
    scene.passes(100)
    delivers(scene, 2, A, B)
    scene.passes(100)
    assert [rnd.phase for rnd in scene.run.open_rounds.values()] == [Phase.REDUCE] * 2
    for peer in (A, C):  # one of them with a slice of all
        scene.says(peer, wire.Leaving(reason="it left"))
    scene.passes(10)
    first, second = scene.run.open_rounds.values()
    assert [rnd.phase for rnd in (first, second)] == [Phase.COLLECT] * 2
    assert set(second.claims) == {B}, "it does not say so again"
    delivers(scene, 1, B)
    delivers(scene, 2, B)
    assert [rnd.phase for rnd in (first, second)] == [Phase.REDUCE] * 2


def test_what_a_roster_has_of_a_former_life_counts_again_once_it_has_it_no_more():
    scene = scene_of(A, B)
    delivers(scene, 1, A, B)
    (first,) = scene.run.open_rounds[1].claims[A].leases
    scene.lost(A)
    scene.join(A)
    claims(scene, A, 2, first)  # all that it has done anew; the roster of round 1 has that, too
    assert A not in scene.run.open_rounds[2].claims
    one = scene.run.open_rounds[1]
    claims(scene, A, 1, first, digests=("again", "and again"))
    scene.lost(B)  # with what it had reduced
    assert [share.peer for share in one.roster] == [B]
    assert set(scene.run.open_rounds[2].claims) == {A}


def test_a_peer_that_has_a_new_connection_says_anew_what_it_has_offered():
    """A was killed when it had claimed all its work in both rounds; some of that is lost."""
    scene = scene_of(A, B, rounds=2)
    ids = [lease.id for lease in scene.run.book.held_by(A)]
    claims(scene, A, 1, ids[0])
    claims(scene, A, 2, *ids)
    scene.lost(A)
    scene.join(A)
    assert scene.run.open_rounds[2].claims[A].leases == tuple(ids), "it may be there as a whole"
    claims(scene, A, 1, *ids)  # it has trained further than before, so nothing is left for round 2
    (plan,) = scene.sent(wire.Plan, to=A)
    assert (plan.round, len(plan.leases)) == (2, len(ids) + 1)


@pytest.mark.parametrize("num_committed", [0, 1])
def test_a_host_that_is_started_again_plans_both_anew(num_committed):
    scene = scene_of(A, B)
    for round_id in range(1, num_committed + 1):
        delivers(scene, round_id, A, B)
        all_hold(scene, round_id)
        all_at(scene, round_id)
    first = num_committed + 1
    claims(scene, A, first)
    assert open_ids(scene) == [first, first + 1]
    versions = {rnd.version for rnd in scene.run.open_rounds.values()}
    again = scene.restart()
    assert (again.run.committed, open_ids(again)) == (num_committed, [])
    assert again.run.book == scene.run.book
    again.join(BUILT_IN, A, B, round_id=num_committed)
    assert open_ids(again) == [first]
    delivers(again, first, A, B)
    assert open_ids(again) == [first, first + 1]
    delivers(again, first + 1, A, B)
    assert not versions & {rnd.version for rnd in again.run.open_rounds.values()}
    all_hold(again, first)
    all_at(again, first)
    all_hold(again, first + 1)
    assert again.run.committed == first + 1


def test_a_member_whose_state_differs_is_out_of_all_open_rounds():
    scene = scene_of(A, B, C)
    claims(scene, A, 1)
    delivers(scene, 1, A, B, C)
    all_hold(scene, 1)
    for peer in (BUILT_IN, A, B):
        scene.at_state(peer, 1)
    scene.at_state(C, 1, of="other")
    assert scene.sent(wire.Resync, to=C) == [wire.Resync(round=0, state=state(0))]
    scene.lost(scene.run.open_rounds[2].assignment[0])
    assert not scene.sent(wire.Plan, to=C)
