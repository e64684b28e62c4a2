"""Two accounts that the host keeps: work that a fragment does not contain yet, and bytes."""

from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, SYNC, A, B, C, Scene, state

from atoll.host.run import on_end
from atoll.ids import RoundId
from atoll.net import records, wire
from atoll.traffic import Traffic

UNCLIPPED = replace(SYNC, rounds=100)
PEERS = (A, B, C)
TOKENS = 128  # of a sample

# --- work ----------------------------------------------------------------------------------------


def fragmented(num_fragments: int, *, mode: str = "blocking") -> Scene:
    sync = replace(UNCLIPPED, fragments=num_fragments, inner_steps=num_fragments, mode=mode)
    scene = Scene.of(sync, slice_bytes=((7, 8),) * num_fragments)
    scene.join(BUILT_IN, *PEERS)
    return scene


def commit_round(scene: Scene, *peers) -> None:
    """Let a round be committed with these contributors, and all take the step."""
    scene.delivers(*peers)
    if set(peers) != set(PEERS):
        scene.passes(100.0)  # the grace time for the others
    scene.commits(BUILT_IN, *PEERS)
    for peer in (BUILT_IN, *PEERS):
        scene.at_state(peer, scene.run.committed)


def shares(scene: Scene) -> dict:
    """Return the share of each contributor in the newest commit."""
    return {entry.peer: entry.share for entry in scene.recorded(records.Committed)[-1].roster}


def test_whoever_missed_the_round_of_a_fragment_brings_all_since_the_one_before():
    scene = fragmented(2)
    commit_round(scene, A, B, C)
    commit_round(scene, A, B, C)
    assert shares(scene) == {A: 1 / 3, B: 1 / 3, C: 1 / 3}
    commit_round(scene, A, B)  # C keeps its lease, and gets no other
    assert shares(scene) == {A: 1 / 2, B: 1 / 2}
    # Fragment 1: A and B bring rounds 3 and 4, C the work of one round.
    commit_round(scene, A, B, C)
    assert shares(scene) == {A: 2 / 5, B: 2 / 5, C: 1 / 5}
    # Fragment 0: A and B bring rounds 4 and 5; C also round 2, when it was last in it.
    commit_round(scene, A, B, C)
    assert shares(scene) == {A: 2 / 7, B: 2 / 7, C: 3 / 7}
    commit_round(scene, A, B, C)
    assert shares(scene) == {A: 1 / 3, B: 1 / 3, C: 1 / 3}


def test_tokens_are_counted_once_whatever_the_weight():
    scene = fragmented(2)
    for _ in range(3):
        commit_round(scene, A, B, C)
    for commit in scene.recorded(records.Committed):
        assert {entry.num_tokens for entry in commit.roster} == {2 * TOKENS}


def test_with_one_fragment_nothing_is_ever_left():
    scene = fragmented(1)
    commit_round(scene, A, B)
    commit_round(scene, A, B, C)
    assert [scene.run.fresh_tokens(peer, RoundId(3)) for peer in PEERS] == [0, 0, 0]


def test_of_one_that_left_nothing_is_left():
    scene = fragmented(2)
    commit_round(scene, A, B, C)
    assert scene.run.fresh_tokens(C, RoundId(2)) == 2 * TOKENS
    scene.says(C, wire.Leaving(reason="it left"))
    assert scene.run.fresh_tokens(C, RoundId(2)) == 0
    scene.join(C, round_id=1)
    commit_round(scene, A, B, C)
    assert shares(scene) == {A: 2 / 5, B: 2 / 5, C: 1 / 5}
    assert scene.restart().run.fresh == scene.run.fresh


def test_of_one_that_left_without_a_lease_nothing_is_left_either():
    scene = fragmented(2)
    scene.delivers(A, B, C)
    scene.commits(BUILT_IN, *PEERS)
    assert scene.run.book.held_by(C) == ()
    scene.says(C, wire.Leaving(reason="it left"))
    assert scene.run.fresh_tokens(C, RoundId(2)) == 0
    assert scene.restart().run.fresh == scene.run.fresh


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4),
    st.sampled_from(["blocking", "overlap"]),
    st.lists(st.sets(st.sampled_from(PEERS), min_size=2), min_size=1, max_size=10),
)
def test_the_weight_is_of_all_that_is_new_to_the_fragment(num_fragments, mode, rounds):
    """`rounds`: who contributes to each. The quorum is two of three."""
    scene = fragmented(num_fragments, mode=mode)
    worked = {peer: [] for peer in PEERS}  # of each commit that it is in: round and tokens
    for round_id, peers in enumerate(rounds, start=1):
        commit_round(scene, *sorted(peers))
        (commit,) = [c for c in scene.recorded(records.Committed) if c.round == round_id]
        assert [entry.peer for entry in commit.roster] == sorted(peers)
        weights = {}
        for entry in commit.roster:
            # When it was in the rounds of this fragment.
            before = [r for r, _ in worked[entry.peer] if (r - round_id) % num_fragments == 0]
            worked[entry.peer].append((round_id, entry.num_tokens))
            weights[entry.peer] = sum(
                tokens for r, tokens in worked[entry.peer] if r > max(before, default=0)
            )
        total = sum(weights.values())
        expected = {peer: float(Fraction(weight, total)) for peer, weight in weights.items()}
        assert shares(scene) == pytest.approx(expected)
    again = scene.restart().run
    assert (again.fresh, again.book) == (scene.run.fresh, scene.run.book)


# --- bytes ---------------------------------------------------------------------------------------


def at_state(scene: Scene, peer, round_id: int, **moved: int) -> None:
    scene.says(
        peer,
        wire.AtState(
            round=RoundId(round_id), state=state(round_id), device="cpu", traffic=Traffic(**moved)
        ),
    )


def moved(scene: Scene) -> dict:
    """Return what the newest agreement tells of each member."""
    agreed = scene.recorded(records.Agreed)[-1]
    return {one.peer: one.traffic for one in agreed.traffic}


def test_what_members_sent_and_received_is_told_once_with_the_state():
    scene = Scene()
    scene.join(A, B, C)
    scene.delivers(A, B, C)
    at_state(scene, C, 0, updates_received=1)
    at_state(scene, C, 0, updates_received=20, control_sent=5)
    scene.commits(A, B)
    at_state(scene, B, 1, contributions_sent=300)
    assert moved(scene) == {}, "of the round before"
    at_state(scene, A, 1)
    assert moved(scene) == {
        B: Traffic(contributions_sent=300),
        C: Traffic(updates_received=21, control_sent=5),
    }
    assert scene.run.traffic == {}
    # C speaks after the agreement: it is in the next one.
    at_state(scene, C, 1, state_sent=4000)
    scene.delivers(A, B, C)
    scene.commits(A, B)
    for peer in (A, B):
        at_state(scene, peer, 2)
    assert moved(scene) == {C: Traffic(state_sent=4000)}
    told = [one.traffic for record in scene.recorded(records.Agreed) for one in record.traffic]
    assert sum(told, Traffic()) == Traffic(
        contributions_sent=300, updates_received=21, control_sent=5, state_sent=4000
    )


def test_the_journal_names_members_in_their_order():
    scene = Scene()
    scene.join(A, B)
    scene.delivers(A, B)
    scene.commits(A, B)
    for peer in (B, A):
        at_state(scene, peer, 1, control_sent=1)
    assert list(moved(scene)) == [A, B]


def test_what_was_told_is_not_told_again_after_a_restart():
    scene = Scene()
    scene.join(A)
    scene.delivers(A)
    scene.commits(A)
    at_state(scene, A, 1, control_sent=1)
    again = scene.restart()
    assert again.run.traffic == {}
    assert records.decode(records.encode(scene.recorded(records.Agreed)[-1])).traffic != ()


def test_what_is_told_after_the_last_agreement_is_put_on_record_at_the_end():
    scene = Scene()
    scene.join(A, B)
    scene.delivers(A, B)
    scene.commits(A, B)
    for peer in (A, B):
        at_state(scene, peer, 1)
    at_state(scene, B, 1, state_sent=7)
    for _ in range(2):  # it leaves, comes back, and leaves again
        scene.says(A, wire.Leaving(reason="it left", traffic=Traffic(updates_sent=30)))
        scene.join(A, round_id=1)
    (append,) = on_end(scene.run)
    (moved,) = append.records
    assert moved == records.Moved(
        traffic=(
            records.PeerTraffic(peer=A, traffic=Traffic(updates_sent=60)),
            records.PeerTraffic(peer=B, traffic=Traffic(state_sent=7)),
        )
    )
    assert records.decode(records.encode(moved)) == moved
    assert on_end(scene.run) == [], "once"
