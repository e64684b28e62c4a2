"""What the host does for peers that train on during the exchange, and for fragments in turn."""

import pytest
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, SYNC, A, B, C, Scene, state

from atoll.host.effects import SendCommits
from atoll.host.state import REPLAY_ROUNDS
from atoll.ids import Lease, LeaseId, RoundId
from atoll.net import records, wire

PER_ROUND = 4  # samples of one peer, with one fragment
OVERLAP = replace(SYNC, mode="overlap")
HALVES = replace(SYNC, fragments=2, rounds=100)
SLICES = ((7, 8), (9, 10, 11))  # bytes of the updates of each half


def lease(number: int) -> Lease:
    """Return the lease of this number, where each is the work of one round."""
    return Lease(id=LeaseId(number), start=PER_ROUND * (number - 1), stop=PER_ROUND * number)


def commit_round(scene: Scene, *peers, num_leases: int | None = None) -> None:
    """Let a round be committed with these contributors, and all members take the step."""
    members = [member.peer for member in scene.run.membership.connected()]
    scene.delivers(*peers, num_leases=num_leases)
    if scene.run.round.roster == ():
        scene.passes(100.0)
    scene.commits(*members)
    for peer in members:
        scene.at_state(peer, scene.run.committed)


# --- work ahead ----------------------------------------------------------------------------------


def test_overlapped_each_peer_holds_the_work_of_two_rounds_one_grant_for_each():
    scene = Scene.of(OVERLAP)
    scene.join(BUILT_IN, A, B)
    assert scene.recorded(records.Leased) == [
        records.Leased(peer=peer, leases=(lease(number),))
        for peer, number in ((A, 1), (A, 2), (B, 3), (B, 4))
    ]
    (plan,) = scene.sent(wire.Plan, to=A)
    assert plan.leases == (lease(1), lease(2))


def test_blocking_it_holds_that_of_one():
    scene = Scene.of(SYNC)
    scene.join(BUILT_IN, A)
    (plan,) = scene.sent(wire.Plan, to=A)
    assert plan.leases == (lease(1),)


def test_what_was_committed_is_filled_up_and_the_last_round_gives_no_work_ahead():
    scene = Scene.of(OVERLAP)
    scene.join(A)
    plans = scene.sent(wire.Plan, to=A)
    for _ in range(1, SYNC.rounds):
        commit_round(scene, A, num_leases=1)
        plans += scene.sent(wire.Plan, to=A)
    assert [[one.id for one in plan.leases] for plan in plans] == [[1, 2], [2, 3], [3]]
    commit_round(scene, A, num_leases=1)
    assert scene.run.is_complete
    assert scene.run.book.held == {}
    assert scene.run.book.committed == ((0, PER_ROUND * SYNC.rounds),)


def test_a_peer_that_was_late_keeps_its_work_and_gets_no_more_of_it():
    scene = Scene.of(OVERLAP)
    scene.join(A, B, C)
    commit_round(scene, A, C, num_leases=1)
    held = [[one.id for one in scene.run.book.held_by(peer)] for peer in (A, B, C)]
    assert held == [[2, 7], [3, 4], [6, 8]]


def test_a_contribution_may_end_where_a_lease_does_and_the_rest_stays_held():
    scene = Scene.of(OVERLAP)
    scene.join(A)
    commit_round(scene, A, num_leases=1)
    (entry,) = scene.recorded(records.Committed)[0].roster
    assert (entry.leases, entry.num_tokens) == ((1,), PER_ROUND * 128)
    assert lease(2) in scene.run.book.held_by(A)


def test_samples_that_are_free_again_are_the_next_work_cut_at_the_end_of_a_round():
    scene = Scene.of(OVERLAP)
    scene.join(A, B)
    scene.says(A, wire.Leaving(reason="it left"))
    scene.join(C)
    granted = [r.leases for r in scene.recorded(records.Leased) if r.peer == C]
    assert [[(one.start, one.stop) for one in each] for each in granted] == [[(0, 4)], [(4, 8)]]


def test_half_a_round_of_work_is_filled_up_to_a_whole_one():
    """What is left of an odd lease, and then a round more: each contribution can be a round's."""
    scene = Scene.of(OVERLAP)
    scene.join(BUILT_IN)
    scene.run.book.grant(A, num_samples=3)
    scene.join(A)
    granted = [r.leases for r in scene.recorded(records.Leased)]
    assert [[(one.start, one.stop) for one in each] for each in granted] == [[(3, 4)], [(4, 8)]]


@pytest.mark.parametrize("num_rounds", [0, 1, 2, 3])
def test_a_replay_gives_the_same_book(num_rounds):
    scene = Scene.of(OVERLAP)
    scene.join(BUILT_IN, A, B, C)
    for round_id in range(1, num_rounds + 1):
        commit_round(scene, A, C, num_leases=1)
        assert scene.run.committed == round_id
    again = scene.restart()
    assert again.run.book == scene.run.book
    assert again.run.book.held or num_rounds == 3


# --- fragments in turn ---------------------------------------------------------------------------


def halves(*peers) -> Scene:
    scene = Scene.of(HALVES, slice_bytes=SLICES)
    scene.join(*peers)
    return scene


def test_each_fragment_has_its_turn_with_its_own_slices():
    scene = halves(A)
    plans = scene.sent(wire.Plan, to=A)
    for _ in range(4):
        commit_round(scene, A)
        plans += scene.sent(wire.Plan, to=A)
    assert [(plan.round, plan.fragment) for plan in plans] == [
        (1, 0),
        (2, 1),
        (3, 0),
        (4, 1),
        (5, 0),
    ]
    assert [plan.reductions[-1].stop for plan in plans] == [2, 3, 2, 3, 2]
    commits = scene.recorded(records.Committed)
    assert [(one.round, one.fragment) for one in commits] == [(1, 0), (2, 1), (3, 0), (4, 1)]
    assert [tuple(u.num_bytes for u in one.updates) for one in commits] == [*SLICES, *SLICES]


def test_a_round_has_its_part_of_the_inner_steps():
    """Two inner steps from one turn of a fragment to the next: one of them in each round."""
    scene = halves(A)
    plans = scene.sent(wire.Plan, to=A)
    for _ in range(2):
        commit_round(scene, A)
        plans += scene.sent(wire.Plan, to=A)
    assert [plan.first_step for plan in plans] == [0, 1, 2]
    spans = [[(one.start, one.stop) for one in plan.leases] for plan in plans]
    assert spans == [[(0, 2)], [(2, 4)], [(4, 6)]]


def test_a_contribution_with_the_slices_of_another_fragment_is_none():
    scene = halves(A)
    commit_round(scene, A)
    ids = [one.id for one in scene.run.book.held_by(A)]
    claim = wire.Contribution(
        round=RoundId(2), leases=tuple(ids), num_steps=1, mean_loss=2.0, digests=("0" * 64,) * 2
    )
    scene.says(A, claim)
    assert scene.run.round.claims == {}
    scene.says(A, replace(claim, digests=("0" * 64,) * 3))
    assert A in scene.run.round.claims


# --- catching up ---------------------------------------------------------------------------------


def with_commits(num_rounds: int, *, rounds: int = 100) -> Scene:
    """Return a run of two fragments that has so many rounds behind it, and nobody in it."""
    scene = Scene.of(replace(HALVES, rounds=rounds), slice_bytes=SLICES)
    scene.join(A, B)
    for _ in range(num_rounds):
        commit_round(scene, A, B)
    return scene.restart()


@pytest.mark.parametrize(
    ("num_rounds", "rounds", "base"),
    [(0, 9, 0), (1, 9, 0), (2, 9, 2), (7, 9, 6), (8, 9, 8), (9, 9, 9), (7, 7, 7)],
)
def test_one_without_a_state_starts_from_the_newest_that_members_keep(num_rounds, rounds, base):
    scene = with_commits(num_rounds, rounds=rounds)
    scene.hello(C, round_id=0, state_digest=state(0, of="none"))
    (welcome,) = scene.sent(wire.Welcome)
    assert (welcome.committed, welcome.base_round) == (num_rounds, base)
    assert welcome.base_state == state(base)
    assert SendCommits(C, RoundId(base), RoundId(num_rounds)) in scene.effects


@pytest.mark.parametrize(
    ("round_id", "base"),
    [
        (21, 21),  # its own, though members do not keep that
        (21 - 2 * REPLAY_ROUNDS, 21 - 2 * REPLAY_ROUNDS),  # so many updates of each fragment
        (20 - 2 * REPLAY_ROUNDS, 20),
    ],
)
def test_one_with_a_state_replays_as_many_updates_of_each_fragment_as_of_one(round_id, base):
    scene = with_commits(21)
    scene.hello(A, round_id=round_id)
    (welcome,) = scene.sent(wire.Welcome)
    assert welcome.base_round == base


def test_one_whose_state_differs_between_two_turns_fetches_an_older_one_and_replays():
    scene = halves(A, B, C)
    for _ in range(3):
        commit_round(scene, A, B, C)
    scene.at_state(C, 3, of="other")
    assert scene.sent(wire.Resync, to=C) == [wire.Resync(round=RoundId(2), state=state(2))]
    assert SendCommits(C, RoundId(2), RoundId(3)) in scene.effects


# --- a line that breaks --------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
def test_who_has_not_heard_that_its_own_work_is_committed_keeps_what_came_after_it(restarted):
    scene = Scene.of(OVERLAP)
    scene.join(BUILT_IN, A, B)
    commit_round(scene, A, B, num_leases=1)
    if restarted:
        scene.restart()
    else:
        scene.lost(A)
    # It knows of leases 1, which is committed, and 2, and has trained on both.
    scene.hello(A, round_id=0, trained=(LeaseId(1), LeaseId(2)))
    welcome = scene.sent(wire.Welcome, to=A)[-1]
    assert not welcome.reset
    assert {held.id for held in welcome.held} >= {1, 2}
    assert SendCommits(A, RoundId(0), RoundId(1)) in scene.hello(A, round_id=0)
    # Once it knows, they are not its own any more.
    scene.hello(A, round_id=1, trained=(LeaseId(1),))
    assert scene.sent(wire.Welcome, to=A)[-1].reset
