"""What happens to a run, and what the host then does: no socket, no clock."""

from math import inf, nan

import pytest
from msgspec.structs import replace
from tests.unit.host.scene import (
    BUILT_IN,
    CONFIG,
    GENESIS,
    NUM_SLICES,
    SLICE_BYTES,
    SYNC,
    A,
    B,
    C,
    D,
    Scene,
    contribution,
    delivered,
    held,
    hello,
    name,
    reduced,
    state,
)

from atoll import events
from atoll.config import canonical
from atoll.data import leases
from atoll.host import operate, run as decisions
from atoll.host.decision import Share
from atoll.host.effects import Drop, Report, SendCommits
from atoll.host.membership import Member
from atoll.host.open_round import NOBODY, Phase
from atoll.host.state import REPLAY_ROUNDS
from atoll.ids import INITIAL, RoundId
from atoll.net import records, wire


@pytest.fixture
def scene() -> Scene:
    """A run with A, B and the built-in member, whose first round is open."""
    scene = Scene()
    scene.join(BUILT_IN, A, B)
    assert scene.run.round is not None
    return scene


def with_commits(num_rounds: int) -> Scene:
    """Return a run that has so many rounds behind it, and nobody in it."""
    config = replace(CONFIG, sync=replace(SYNC, rounds=100))
    scene = Scene([replace(GENESIS, config=canonical(config).decode())])
    scene.join(BUILT_IN, A, B)
    for round_id in range(1, num_rounds + 1):
        scene.delivers(A, B)
        scene.commits(A, B, BUILT_IN)
        for peer in (BUILT_IN, A, B):
            scene.at_state(peer, round_id)
    return scene.restart()


# --- from nothing to a commit --------------------------------------------------------------------


def test_a_round_from_the_first_hello_to_the_commit():
    scene = Scene()
    scene.hello(A)
    (welcome,) = scene.sent(wire.Welcome)
    assert welcome == wire.Welcome(
        committed=INITIAL,
        base_round=INITIAL,
        base_state=state(0),
        dataset=GENESIS.dataset,
        held=(),
        reset=False,
        sources=(),
    )
    assert SendCommits(A, INITIAL, INITIAL) in scene.effects
    scene.probed(A)
    scene.at_state(A)
    joined = events.PeerJoined(peer=A, name="a", device="cpu", reachable=True)
    assert scene.reported(events.PeerJoined) == [joined]
    assert scene.recorded(records.Agreed) == [
        records.Agreed(round=INITIAL, state=state(0), peers=(A,))
    ]
    assert scene.sent(wire.Plan, to=A) != []  # nobody else is expected: it opens at once

    plan = scene.sent(wire.Plan, to=A)[0]
    assert (plan.round, plan.first_step, plan.codec, plan.update_codec) == (1, 0, "int8", "int8")
    assert [(r.start, r.stop) for r in plan.reductions] == [(0, NUM_SLICES)]
    assert sum(lease.stop - lease.start for lease in plan.leases) == CONFIG.samples_per_round

    scene.claims(A)
    (closed,) = scene.sent(wire.Closed)
    assert closed.roster_version == scene.run.round.roster_version
    assert scene.run.round.announced == (Share(peer=A, share=1.0, num_tokens=512),)
    jobs = scene.sent(wire.Reduce, to=A)
    assert [job.slice for job in jobs] == [0, 1]
    digest = name("slice", A, 1, 1)
    assert jobs[1].inputs == (wire.ReduceInput(peer=A, share=1.0, digest=digest),)

    scene.delivers(A)
    rnd = scene.run.round
    assert rnd.phase is Phase.REDUCE
    assert scene.sent(wire.Closed) == scene.sent(wire.Reduce) == []  # all came as expected

    version = scene.reduces()
    scene.says(A, held(version=version))
    assert (scene.run.committed, scene.run.round) == (1, None)
    (commit,) = scene.recorded(records.Committed)
    (entry,) = commit.roster
    assert (entry.peer, entry.num_tokens, entry.mean_loss) == (A, 512, 2.0)
    assert SendCommits(A, INITIAL, RoundId(1)) in scene.effects
    (report,) = scene.reported(events.RoundCommitted)
    assert (report.num_tokens, report.mean_loss, report.update_bytes) == (512, 2.0, 15)
    assert scene.run.book.committed == ((0, 4),)
    assert not scene.run.is_complete


def test_the_last_commit_is_the_end_once_its_state_is_agreed():
    scene = Scene()
    scene.join(A)
    for round_id in range(1, SYNC.rounds + 1):
        assert not scene.run.is_complete
        scene.delivers(A)
        scene.commits(A)
        assert not scene.run.is_complete
        scene.at_state(A, round_id)
    assert scene.run.is_complete
    assert scene.run.round is None
    assert scene.passes(100) == []


# --- the opening ---------------------------------------------------------------------------------


def test_the_first_round_waits_a_moment_for_those_who_are_coming():
    scene = Scene()
    scene.join(BUILT_IN)
    scene.hello(A)
    scene.hello(B)
    scene.probed(A)
    scene.at_state(A)
    assert scene.run.round is None  # B may be ready in a moment
    scene.passes(1.9)
    assert scene.run.round is None
    scene.passes(0.1)
    assert scene.run.round.waited == {A}


def test_when_all_that_are_coming_are_there_it_opens_at_once():
    scene = Scene()
    scene.hello(A)
    scene.hello(B)
    for peer in (A, B):
        scene.at_state(peer)
    scene.probed(A)
    assert scene.run.round is None  # the host has not tried to reach B yet
    scene.probed(B)
    assert scene.run.round.waited == {A, B}


def test_fewer_than_the_least_number_of_peers_wait():
    config = replace(CONFIG, sync=replace(SYNC, min_peers=2))
    scene = Scene([replace(GENESIS, config=canonical(config).decode())])
    scene.join(A)
    scene.passes(9)
    assert scene.run.round is None
    scene.join(B)
    assert scene.run.round.waited == {A, B}


def test_without_anyone_who_can_reduce_no_round_opens():
    scene = Scene()
    scene.join(A, reachable=False)
    assert scene.passes(9) == []
    assert scene.run.round is None
    scene.join(BUILT_IN)
    assert scene.run.round.assignment == (BUILT_IN, BUILT_IN)
    assert scene.run.round.waited == {A}  # the built-in member does not train


def test_all_reachable_peers_reduce_and_the_built_in_member_only_without_them(scene):
    assert scene.run.round.assignment == (A, B)
    plan = scene.sent(wire.Plan, to=A)[0]
    assert [r.reducer.peer for r in plan.reductions] == [A, B]
    assert [source.peer for source in plan.sources] == [B, BUILT_IN]
    (to_built_in,) = scene.sent(wire.Plan, to=BUILT_IN)
    assert to_built_in.leases == ()


def test_a_latecomer_is_invited_to_the_open_round(scene):
    scene.join(C)
    (plan,) = scene.sent(wire.Plan, to=C)
    assert plan.leases == (leases.Lease(id=3, start=8, stop=12),)
    assert C in scene.run.round.invited
    assert C not in scene.run.round.waited
    scene.delivers(A, B)
    assert scene.run.round.phase is Phase.REDUCE
    scene.lost(C)
    scene.join(C)
    assert scene.sent(wire.Closed, to=C) != []


def test_one_that_becomes_reachable_after_it_is_ready_is_invited_then(scene):
    scene.hello(C)
    scene.at_state(C)
    assert scene.sent(wire.Plan, to=C) == []
    scene.probed(C)
    assert scene.sent(wire.Plan, to=C) != []


# --- catching up ---------------------------------------------------------------------------------


@pytest.mark.parametrize("round_id", [-1, 1, 99])
def test_a_peer_from_another_history_is_refused(scene, round_id):
    scene.hello(C, round_id=round_id)
    (refused,) = scene.sent(wire.Refused)
    assert f"round {round_id}" in refused.reason
    assert Drop(C, refused.reason) in scene.effects
    assert C not in scene.run.membership


@pytest.mark.parametrize(
    ("round_id", "of", "base"),
    [
        (10, "all", 10),
        (10 - REPLAY_ROUNDS, "all", 10 - REPLAY_ROUNDS),  # it replays the updates since
        (9 - REPLAY_ROUNDS, "all", 10),  # too far behind: the newest state is cheaper
        (9, "other", 10),  # a state that the others did not agree on
        (0, "other", 10),
    ],
)
def test_a_peer_that_comes_back_starts_from_its_own_state_if_it_is_any_good(round_id, of, base):
    scene = with_commits(10)
    scene.hello(A, round_id=round_id, state_digest=state(round_id, of=of))
    (welcome,) = scene.sent(wire.Welcome)
    assert (welcome.committed, welcome.base_round) == (10, base)
    assert welcome.base_state == state(base)
    assert SendCommits(A, RoundId(base), RoundId(10)) in scene.effects


@pytest.mark.parametrize(
    ("round_id", "of", "updates_more", "base"),
    [
        (10, "all", 0, 10),
        (9, "all", 1, 9),  # it saves more than the update since
        (9, "all", 0, 10),  # it does not
        (10 - REPLAY_ROUNDS, "all", 1, 10 - REPLAY_ROUNDS),
        (9 - REPLAY_ROUNDS, "all", 100, 10),  # its updates may be gone
        (9, "other", 100, 10),  # a state that was never agreed on
        (11, "all", 100, 10),
    ],
)
def test_who_was_fetching_a_state_goes_on_with_it_if_that_saves_more_than_it_costs(
    round_id, of, updates_more, base
):
    scene = with_commits(10)
    num_bytes = (10 - round_id) * sum(SLICE_BYTES) + updates_more
    arriving = wire.Arriving(
        round=RoundId(round_id), state=state(round_id, of=of), num_bytes=max(0, num_bytes)
    )
    scene.hello(A, state_digest=state(0, of="none"), arriving=arriving)
    (welcome,) = scene.sent(wire.Welcome)
    assert (welcome.base_round, welcome.base_state) == (base, state(base))
    assert SendCommits(A, RoundId(base), RoundId(10)) in scene.effects
    scene.hello(A, round_id=8, arriving=arriving)
    (welcome,) = scene.sent(wire.Welcome)
    assert welcome.base_round == 8, "it has a good state of its own"


def test_the_newest_agreed_state_may_be_older_than_the_newest_commit():
    scene = with_commits(2)
    scene.join(A, round_id=2)
    scene.passes(SYNC.grace_floor_s)
    scene.delivers(A)
    scene.commits(A)
    scene.hello(B, round_id=1, state_digest=state(1, of="other"))
    (welcome,) = scene.sent(wire.Welcome)
    assert (welcome.committed, welcome.base_round, welcome.base_state) == (3, 2, state(2))


@pytest.mark.parametrize(("trained", "reset"), [((), False), ((1,), False), ((1, 77), True)])
def test_local_work_of_leases_that_are_not_held_any_more_is_dropped(scene, trained, reset):
    assert [lease.id for lease in scene.run.book.held_by(A)] == [1]
    scene.lost(A)
    scene.hello(A, trained=trained)
    (welcome,) = scene.sent(wire.Welcome)
    assert welcome.reset is reset
    assert [lease.id for lease in welcome.held] == [1]


@pytest.mark.parametrize("round_id", [-1, 1])
def test_who_says_that_it_is_where_nobody_can_be_is_dropped(scene, round_id):
    scene.at_state(A, round_id)
    assert Drop(A, f"it says that it is at round {round_id}") in scene.effects
    assert scene.run.membership.get(A).round == 0


# --- agreement -----------------------------------------------------------------------------------


def committed_once(*peers) -> Scene:
    scene = Scene()
    scene.join(*peers)
    scene.passes(SYNC.grace_floor_s)
    trainers = [peer for peer in peers if peer != BUILT_IN]
    scene.delivers(*trainers)
    scene.commits(*peers[:2])
    return scene


def test_the_state_of_most_is_the_state_and_the_others_fetch_it():
    scene = committed_once(A, B, C)
    scene.at_state(A, 1, of="other")
    scene.at_state(B, 1)
    assert 1 not in scene.run.agreed  # one against one, and C has not spoken
    scene.at_state(C, 1)
    assert scene.run.agreed[1] == state(1)
    (differs,) = scene.reported(events.StateDiffers)
    assert (differs.peer, differs.digest, differs.agreed) == (A, state(1, of="other"), state(1))
    assert scene.sent(wire.Resync, to=A) == [wire.Resync(round=1, state=state(1))]
    assert SendCommits(A, RoundId(1), RoundId(1)) in scene.effects
    scene.passes(SYNC.grace_floor_s)
    assert scene.run.round.waited == {B, C}


def test_whoever_is_far_behind_has_no_say_in_what_is_agreed_on():
    scene = Scene.of(replace(SYNC, quorum=0.5))
    scene.join(BUILT_IN, A, B, C, D)
    for round_id, peers in ((1, (BUILT_IN, A, B)), (2, (BUILT_IN, A))):
        scene.passes(SYNC.grace_floor_s)
        scene.delivers(A, B)
        scene.passes(100.0)  # C and D stay where they are
        scene.commits(BUILT_IN, A)
        for peer in peers:
            scene.at_state(peer, round_id)
    assert [agreed.round for agreed in scene.recorded(records.Agreed)] == [0, 1, 2]


def test_who_reports_another_state_later_is_told_to_fetch_the_agreed_one():
    scene = committed_once(A, B, C)
    scene.at_state(A, 1)
    scene.at_state(B, 1)
    scene.at_state(C, 1, of="other")
    assert scene.sent(wire.Resync, to=C) == [wire.Resync(round=1, state=state(1))]
    scene.at_state(C, 1)
    assert scene.run.membership.get(C).state == state(1)


def test_one_against_one_the_built_in_member_decides():
    scene = committed_once(A, BUILT_IN)
    scene.at_state(A, 1, of="x")
    assert 1 not in scene.run.agreed
    scene.at_state(BUILT_IN, 1, of="y")
    assert scene.run.agreed[1] == state(1, of="y")


def test_whoever_stays_silent_does_not_hold_up_a_majority():
    scene = committed_once(A, B, C)
    scene.at_state(A, 1)
    scene.at_state(B, 1)
    assert scene.run.agreed[1] == state(1)


# --- the close, and what is not believed ---------------------------------------------------------


@pytest.mark.parametrize("lease_ids", [(), (2,), (1, 2), (99,), (1, 1)])
def test_a_peer_cannot_claim_leases_that_are_not_its_own_nor_one_twice(scene, lease_ids):
    scene.says(A, contribution(A, lease_ids=lease_ids))
    assert A not in scene.run.round.claims


def test_weight_is_the_tokens_of_the_leases_whatever_the_peer_says(scene):
    scene.delivers(B)
    scene.says(A, replace(contribution(A), num_steps=4_000_000))
    for k in range(NUM_SLICES):
        scene.says(scene.run.round.assignment[k], delivered(A, k))
    assert [(s.share, s.num_tokens) for s in scene.run.round.roster] == [(0.5, 512), (0.5, 512)]


@pytest.mark.parametrize(
    "message",
    [
        contribution(A, round_id=2),
        delivered(A, 0, round_id=2),
        reduced(0, round_id=2, version=0),
        held(round_id=2, version=0),
        wire.Unreachable(round=RoundId(2), reducer=A),
        wire.Missing(),
    ],
)
def test_messages_about_another_round_change_nothing(scene, message):
    assert scene.says(A, message) == []
    rnd = scene.run.round
    for noted in (rnd.claims, rnd.delivered, rnd.reduced, rnd.held, rnd.complaints):
        assert not noted


def test_messages_without_an_open_round_change_nothing():
    scene = Scene()
    scene.join(BUILT_IN)
    assert scene.says(BUILT_IN, delivered(A, 0)) == []


def test_who_is_missing_is_reported_at_the_close(scene):
    scene.join(C)
    scene.run.round.waited.add(C)
    scene.delivers(A, B)
    scene.passes(2.0)
    (closed,) = scene.reported(events.RoundClosed)
    assert (closed.roster, closed.missing) == ((A, B), (C,))


# --- heartbeats ----------------------------------------------------------------------------------


def test_a_heartbeat_with_a_step_is_news(scene):
    beat = wire.Heartbeat(round=RoundId(1), step=3, loss=2.5, tokens_per_s=10.0)
    scene.says(A, beat)
    expected = events.Training(peer=A, round=RoundId(1), step=3, loss=2.5, tokens_per_s=10.0)
    assert scene.effects == [Report(expected)]
    assert scene.says(A, wire.Heartbeat()) == []


@pytest.mark.parametrize("number", [nan, inf])
def test_figures_that_no_file_of_events_can_hold_are_not_reported(scene, number):
    assert scene.says(A, wire.Heartbeat(step=3, loss=number)) == []
    assert scene.says(A, wire.Heartbeat(step=3, tokens_per_s=number)) == []


def test_who_is_silent_is_dropped_and_later_loses_its_leases(scene):
    scene.now += 5
    scene.run.membership.hear(B, now=scene.now)
    scene.run.membership.hear(BUILT_IN, now=scene.now)
    scene.now += 5.1
    scene.tick()
    assert Drop(A, "silent for more than 10 s") in scene.effects
    (left,) = scene.reported(events.PeerLeft)
    assert left.peer == A
    assert scene.run.book.held_by(A) != ()
    scene.passes(30.1)
    assert scene.recorded(records.Released) == [
        records.Released(peer=A, leases=(1,), reason="its holder is gone")
    ]
    assert A not in scene.run.membership


def test_who_leaves_gives_its_leases_back_at_once(scene):
    scene.says(A, wire.Leaving(reason="it left"))
    assert scene.recorded(records.Released)[0].leases == (1,)
    assert Drop(A, "it left") in scene.effects
    (left,) = scene.reported(events.PeerLeft)
    assert (left.name, left.reason) == ("a", "it left")
    assert scene.lost(A) == []
    scene.says(A, wire.Leaving(reason=""))  # twice: it is nobody any more
    assert scene.reported(events.PeerLeft)[0].name == ""
    scene.join(C)
    (plan,) = scene.sent(wire.Plan, to=C)
    assert (plan.leases[0].start, plan.leases[0].stop) == (0, 4)  # they are leased again


def test_the_work_of_one_that_delivered_and_left_still_counts(scene):
    scene.join(C, reachable=False)
    scene.delivers(C)
    scene.says(C, wire.Leaving(reason="it left"))
    scene.delivers(A, B)
    assert scene.recorded(records.Released) == []
    assert [share.peer for share in scene.run.round.roster] == [A, B, C]


def test_of_one_that_reduced_its_own_slice_and_left_nothing_is_left(scene):
    scene.delivers(A)
    scene.says(A, wire.Leaving(reason="it left"))
    scene.delivers(B)
    # A's slice went with it: whoever takes over asks the contributors again, and A is gone.
    scene.passes(2.1)
    assert [share.peer for share in scene.run.round.roster] == [B]
    assert [r.peer for r in scene.recorded(records.Released)] == [A]


def test_a_claim_that_was_never_completed_goes_with_its_leases(scene):
    scene.claims(A)
    assert A in scene.run.round.claims
    scene.says(A, wire.Leaving(reason="it left"))
    assert A not in scene.run.round.claims


# --- reducers that fail --------------------------------------------------------------------------


def test_a_lost_reducer_is_replaced_and_its_jobs_go_to_another(scene):
    scene.delivers(A, B)
    assert scene.run.round.assignment == (A, B)
    scene.lost(B)
    rnd = scene.run.round
    assert rnd.assignment == (A, A)
    assert [plan.version for plan in scene.sent(wire.Plan, to=A)] == [rnd.version]
    assert [job.slice for job in scene.sent(wire.Reduce, to=A)] == [1]
    (planned,) = scene.reported(events.RoundPlanned)
    assert planned.reason == "a reducer is gone"


def test_one_that_is_still_catching_up_gets_no_plan(scene):
    scene.hello(C)
    scene.delivers(A, B)
    scene.lost(B)
    assert scene.sent(wire.Plan, to=A) != []
    assert scene.sent(wire.Plan, to=C) == []


def test_with_no_other_peer_the_built_in_member_takes_over(scene):
    scene.lost(A)
    scene.lost(B)
    assert scene.run.round.assignment == (BUILT_IN, BUILT_IN)
    scene.lost(BUILT_IN)
    assert scene.run.round.assignment == (NOBODY, NOBODY)  # until somebody comes
    scene.hello(A)
    assert scene.run.round.assignment == (NOBODY, NOBODY)
    scene.join(BUILT_IN)
    assert scene.run.round.assignment == (BUILT_IN, BUILT_IN)


def test_a_reducer_that_nobody_can_reach_is_replaced(scene):
    for peer in (A, B):
        scene.claims(peer)
        scene.says(peer, wire.Unreachable(round=RoundId(1), reducer=B))
    assert scene.run.round.assignment == (A, A)
    for peer in (A, B):
        scene.says(peer, wire.Unreachable(round=RoundId(1), reducer=A))
    assert scene.run.round.assignment == (BUILT_IN, BUILT_IN)
    for peer in (A, B):  # there is no other: it stays, and they try again
        scene.says(peer, wire.Unreachable(round=RoundId(1), reducer=BUILT_IN))
    assert scene.run.round.assignment == (BUILT_IN, BUILT_IN)


def test_who_had_to_be_relieved_sits_out_for_longer_each_time_until_it_does_its_work():
    scene = Scene.of(replace(SYNC, rounds=20))
    scene.join(BUILT_IN, A, B)
    reduced_by_b = []
    for round_id in range(1, 13):
        if B in scene.run.round.assignment:
            reduced_by_b.append(round_id)
            if round_id != 6:  # B's line is out of order, but for once
                for peer in (A, B):
                    scene.claims(peer)
                    scene.says(peer, wire.Unreachable(round=RoundId(round_id), reducer=B))
                assert scene.run.round.assignment == (A, A)
        scene.delivers(A, B)
        scene.commits(A, B, BUILT_IN)
        for peer in (BUILT_IN, A, B):
            scene.at_state(peer, round_id)
    # Relieved in 1, 3, then in 7, 9, 12: it sits out 1, 2, then 1, 2, ... rounds.
    assert reduced_by_b == [1, 3, 6, 7, 9, 12]


def test_a_reducer_that_sits_out_is_better_than_none(scene):
    for peer in (A, B):
        scene.claims(peer)
        scene.says(peer, wire.Unreachable(round=RoundId(1), reducer=B))
    scene.delivers(A, B)
    scene.commits(A, B, BUILT_IN)
    scene.lost(BUILT_IN)
    scene.at_state(B, 1)
    scene.lost(A)
    scene.passes(60)  # until nobody waits for A
    assert scene.run.round.id == 2
    assert scene.run.round.assignment == (B, B)


def test_a_round_whose_contributors_are_all_lost_collects_again(scene):
    scene.delivers(A, B)
    scene.lost(A)
    scene.lost(B)
    assert scene.run.round.assignment == (BUILT_IN, BUILT_IN)
    scene.passes(2.1)
    assert scene.run.round.phase is Phase.COLLECT
    (planned,) = scene.reported(events.RoundPlanned)
    assert "every contributor was lost" in planned.reason
    scene.join(A)
    scene.delivers(A)
    scene.passes(60)
    assert scene.run.round.phase is Phase.REDUCE
    assert [share.peer for share in scene.run.round.roster] == [A]


# --- the host comes back -------------------------------------------------------------------------


def test_a_restarted_host_waits_a_moment_for_those_who_hold_leases(scene):
    scene.now = 100.0
    scene = scene.restart()
    assert [m.connected for m in scene.run.membership.members.values()] == [False, False]
    assert scene.run.book.held_by(A) != ()
    scene.join(A)
    assert scene.run.round is None
    scene.join(B)
    assert scene.run.round.waited == {A, B}
    (again, other) = scene.recorded(records.Planned)
    assert again == other
    assert scene.run.round.version == 2 << 12  # none of the earlier process's


def test_it_does_not_wait_for_ever(scene):
    scene = scene.restart()
    scene.join(A)
    scene.passes(1.9)
    assert scene.run.round is None
    scene.passes(0.1)
    assert scene.run.round.waited == {A}


def test_leases_of_those_who_do_not_come_back_after_a_restart_are_free(scene):
    scene.now = 100.0
    scene = scene.restart()
    scene.join(A)
    scene.passes(SYNC.reconnect_s)
    assert scene.recorded(records.Released) == []
    scene.passes(0.1)
    assert [r.peer for r in scene.recorded(records.Released)] == [B]


def test_if_nobody_comes_back_all_leases_are_free(scene):
    scene = scene.restart()
    scene.passes(SYNC.reconnect_s + 0.1)
    assert [r.peer for r in scene.recorded(records.Released)] == [A, B]
    assert scene.run.book.free == ((0, 8),)
    assert scene.run.membership.members == {}


def test_leases_that_were_given_back_are_free_after_a_restart(scene):
    scene.says(A, wire.Leaving(reason="it left"))
    book = scene.run.book
    assert book.free == ((0, 4),)
    assert scene.restart().run.book == book


def admitted(peer):
    return records.Admitted(peer=peer, public_key="", name="", token=name("token"))


def test_only_who_was_there_before_the_start_may_still_have_to_find_the_host():
    scene = Scene([GENESIS, admitted(A), admitted(B)], now=100.0)
    scene.join(C)
    for peer in (A, B, BUILT_IN):
        assert scene.run.may_be_found_again(now=scene.now)
        scene.join(peer)
    assert not scene.run.may_be_found_again(now=scene.now)
    for peer in (A, B, BUILT_IN, C):
        scene.lost(peer)
    assert not scene.run.may_be_found_again(now=scene.now)  # they are members that are away


def test_who_does_not_find_the_host_again_lapses_and_who_was_removed_is_not_expected():
    scene = Scene([GENESIS, admitted(A), admitted(B), records.Removed(peer=A, reason="")], now=7.0)
    scene.join(BUILT_IN)
    assert scene.run.unseen == {B}
    assert scene.run.may_be_found_again(now=7.0 + SYNC.reconnect_s - 0.1)
    assert not scene.run.may_be_found_again(now=7.0 + SYNC.reconnect_s)
    operate.remove(scene.run, B, "", now=8.0)
    assert not scene.run.may_be_found_again(now=8.0)


def test_a_replayed_run_is_the_one_that_was():
    scene = with_commits(2)
    assert scene.run.committed == 2
    assert scene.run.agreed == {r: state(r) for r in range(3)}
    assert scene.run.book.committed == ((0, 16),)
    assert [r.round for r in scene.recorded(records.Committed)] == [1, 2]
    assert decisions.config_of(scene.journal) == scene.run.config


def test_what_is_heard_of_nobody_changes_nothing(scene):
    for effects in (scene.lost(C), scene.probed(C), scene.says(C, wire.Heartbeat())):
        assert effects == []
    scene.lost(A)
    assert scene.lost(A) == []
    assert scene.probed(A) == []


# --- peers that their owners have paused ---------------------------------------------------------


def test_no_round_waits_for_a_paused_peer(scene):
    scene.says(A, wire.Resting(rests=True))
    assert scene.reported(events.PeerRests) == [events.PeerRests(peer=A, name="a", rests=True)]
    scene.delivers(B)
    assert scene.run.round.phase is Phase.REDUCE
    assert scene.reported(events.RoundClosed)[0].missing == (), "she is not late"
    scene.commits(B, BUILT_IN)
    held_before = scene.run.book.held_by(A)

    for peer in (BUILT_IN, A, B):
        scene.at_state(peer, 1)
    assert scene.run.round.waited == {B}
    assert set(scene.run.round.assignment) == {B}, "her machine is left in peace"
    assert scene.sent(wire.Plan, to=A) == []
    assert scene.run.book.held_by(A) == held_before, "what she has done is carried"

    scene.says(A, wire.Resting(rests=False))
    (plan,) = scene.sent(wire.Plan, to=A)
    assert (plan.round, plan.leases) == (2, held_before)
    scene.delivers(A, B)
    scene.commits(B, BUILT_IN)
    assert {entry.peer for entry in scene.recorded(records.Committed)[-1].roster} == {A, B}


def test_a_paused_peer_that_comes_back_is_still_paused(scene):
    scene.lost(A)
    paused = Member(peer=A, name="a", rests=True)
    scene.note(decisions.on_hello(scene.run, paused, hello(A), now=scene.now))
    scene.probed(A)
    scene.at_state(A, 0)
    assert scene.reported(events.PeerRests) == [events.PeerRests(peer=A, name="a", rests=True)]


def test_a_peer_that_is_paused_after_its_contribution_stays_in_the_round(scene):
    scene.claims(A)
    scene.says(A, wire.Resting(rests=True))
    scene.delivers(B)
    assert scene.run.round.phase is Phase.COLLECT, "her slices are on their way"
    scene.delivers(A)
    scene.commits(B, BUILT_IN)
    assert {entry.peer for entry in scene.recorded(records.Committed)[-1].roster} == {A, B}


def test_where_all_are_paused_no_round_opens_until_one_goes_on(scene):
    for peer in (A, B):
        scene.says(peer, wire.Resting(rests=True))
    scene.passes(1000.0)
    assert scene.run.committed == 0
    scene.says(B, wire.Resting(rests=False))
    scene.delivers(B)
    scene.commits(B, BUILT_IN)
    assert [entry.peer for entry in scene.recorded(records.Committed)[-1].roster] == [B]


def test_a_commit_tells_each_member_what_it_has_done_so_far():
    scene = with_commits(2)
    counted = scene.run.counted(A, RoundId(2))
    assert counted is not None
    assert (counted.num_tokens, counted.round_tokens, counted.total_tokens) == (512, 1024, 1024)
