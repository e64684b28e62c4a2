"""What encodings have dropped, over rounds that are committed or not, and over restarts.

Two fragments: the odd rounds are of values 0 to 2, the even ones of 3 to 7.
"""

import resource

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from atoll.durable import TEMPORARY
from atoll.errors import DamagedError, RunError
from atoll.exchange.residual import Residual
from atoll.ids import INITIAL, RoundId, digest_of
from atoll.model.layout import Fragment, Layout

WHOLE = Layout(entries=(), fragments=(Fragment(0, 0, 8),))
HALVES = Layout(entries=(), fragments=(Fragment(0, 0, 3), Fragment(1, 3, 8)))


def dropped(round_id):
    """Return what the encoding of this round drops; it writes its fragment alone."""
    return np.arange(1, 9, dtype=np.float32) + 10 * round_id


def contribute(residual, layout, round_id, *, content=b"first"):
    """Encode, and keep what that drops until it is known whether it is committed."""
    fragment = layout.fragment_of(RoundId(round_id))
    part = slice(fragment.start, fragment.stop)
    residual.pending_N[part] = dropped(round_id)[part]
    residual.save(RoundId(round_id), digest_of(content))


def settle(residual, round_id, *, committed=True, content=b"first"):
    residual.settle(RoundId(round_id), digest_of(content) if committed else None)


def after(layout, *rounds):
    """Return the residual after these rounds were committed."""
    kept_N = np.zeros(8, np.float32)
    for round_id in rounds:
        fragment = layout.fragment_of(RoundId(round_id))
        part = slice(fragment.start, fragment.stop)
        kept_N[part] = dropped(round_id)[part]
    return kept_N


def reopened(path, layout, round_id):
    residual = Residual(path, layout)
    residual.load(RoundId(round_id))
    return residual


def files(path):
    return sorted(int(file.name.partition("-")[0]) for file in path.iterdir())


def test_nothing_was_dropped_at_first(tmp_path):
    residual = reopened(tmp_path / "residual", WHOLE, 0)
    assert not residual.kept_N.any()
    assert residual.kept_N.dtype == np.float32


def test_a_commit_makes_what_was_pending_the_residual(tmp_path):
    residual = Residual(tmp_path, WHOLE)
    contribute(residual, WHOLE, 1)
    assert not residual.kept_N.any()
    settle(residual, 1)
    assert np.array_equal(residual.kept_N, after(WHOLE, 1))


def test_without_a_commit_it_is_what_it_was_before(tmp_path):
    residual = Residual(tmp_path, WHOLE)
    contribute(residual, WHOLE, 1)
    settle(residual, 1)
    contribute(residual, WHOLE, 2)
    settle(residual, 2, committed=False)
    assert np.array_equal(residual.kept_N, after(WHOLE, 1))
    assert np.array_equal(reopened(tmp_path, WHOLE, 2).kept_N, after(WHOLE, 1))


def test_a_round_without_a_contribution_changes_nothing(tmp_path):
    residual = Residual(tmp_path, WHOLE)
    contribute(residual, WHOLE, 1)
    for round_id, committed in ((1, True), (2, False), (3, False)):
        settle(residual, round_id, committed=committed)
    assert np.array_equal(residual.kept_N, after(WHOLE, 1))


def test_each_fragment_has_its_own(tmp_path):
    residual = Residual(tmp_path, HALVES)
    for round_id, committed in ((1, True), (2, True), (3, False), (4, True)):
        contribute(residual, HALVES, round_id)
        settle(residual, round_id, committed=committed)
    assert np.array_equal(residual.kept_N, after(HALVES, 1, 4))
    assert np.array_equal(reopened(tmp_path, HALVES, 4).kept_N, after(HALVES, 1, 4))


def test_of_each_fragment_only_the_newest_stays_on_disk(tmp_path):
    residual = Residual(tmp_path, HALVES)
    for round_id in range(1, 8):
        contribute(residual, HALVES, round_id)
        settle(residual, round_id)
    assert files(tmp_path) == [6, 7]


def test_killed_before_the_commit_it_is_taken_over_when_that_comes(tmp_path):
    contribute(Residual(tmp_path, WHOLE), WHOLE, 1)
    residual = reopened(tmp_path, WHOLE, 0)
    assert not residual.kept_N.any()
    settle(residual, 1)
    assert np.array_equal(residual.kept_N, after(WHOLE, 1))


def test_killed_before_a_round_that_was_committed_without_us(tmp_path):
    contribute(Residual(tmp_path, WHOLE), WHOLE, 1)
    residual = reopened(tmp_path, WHOLE, 0)
    settle(residual, 1, committed=False)
    assert not residual.kept_N.any()
    assert files(tmp_path) == []


def test_started_from_a_state_before_the_newest_commits(tmp_path):
    """The state of round 2 is on disk, those of rounds 3 and 4 are not: they are replayed."""
    residual = Residual(tmp_path, HALVES)
    for round_id in range(1, 5):
        contribute(residual, HALVES, round_id)
        settle(residual, round_id)
    residual = reopened(tmp_path, HALVES, 2)
    for round_id in (3, 4):
        settle(residual, round_id)
    assert np.array_equal(residual.kept_N, after(HALVES, 3, 4))


def test_one_that_contributes_again_after_a_restart_drops_something_else(tmp_path):
    contribute(Residual(tmp_path, WHOLE), WHOLE, 1)
    residual = reopened(tmp_path, WHOLE, 0)
    residual.pending_N[:] = 77
    residual.save(RoundId(1), digest_of(b"second"))
    settle(residual, 1, content=b"second")
    assert (residual.kept_N == 77).all()
    assert (reopened(tmp_path, WHOLE, 1).kept_N == 77).all()
    assert files(tmp_path) == [1]


def test_what_was_sent_before_a_restart_may_be_what_is_committed(tmp_path):
    contribute(Residual(tmp_path, WHOLE), WHOLE, 1)
    residual = reopened(tmp_path, WHOLE, 0)
    residual.pending_N[:] = 77
    residual.save(RoundId(1), digest_of(b"second"))
    settle(residual, 1)
    assert np.array_equal(residual.kept_N, after(WHOLE, 1))
    assert np.array_equal(reopened(tmp_path, WHOLE, 1).kept_N, after(WHOLE, 1))


def test_what_is_saved_after_its_round_is_over_is_not_kept(tmp_path):
    residual = Residual(tmp_path, WHOLE)
    settle(residual, 1, committed=False)
    contribute(residual, WHOLE, 1)
    assert files(tmp_path) == []
    settle(residual, 2, committed=False)
    assert not residual.kept_N.any()


def test_another_state_has_no_residual(tmp_path):
    residual = Residual(tmp_path, WHOLE)
    contribute(residual, WHOLE, 1)
    settle(residual, 1)
    contribute(residual, WHOLE, 2)
    residual.clear()
    assert not residual.kept_N.any()
    assert files(tmp_path) == []
    settle(residual, 2)
    assert not residual.kept_N.any(), "what was pending is forgotten too"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:40] + b"?" + content[41:],
        lambda content: b"?" + content[1:],
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_said_with_what_to_do(tmp_path, damage):
    contribute(Residual(tmp_path, WHOLE), WHOLE, 1)
    [path] = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    residual = Residual(tmp_path, WHOLE)
    for read in (lambda: residual.load(RoundId(1)), lambda: settle(residual, 1)):
        with pytest.raises(DamagedError, match=f"{path.name} is damaged") as caught:
            read()
        assert f"delete {path}" in caught.value.hint
        assert not residual.kept_N.any()


def test_a_file_that_was_half_written_is_none(tmp_path):
    contribute(Residual(tmp_path, WHOLE), WHOLE, 1)
    [path] = tmp_path.iterdir()
    path.rename(path.with_name(f"{TEMPORARY}{path.name}"))
    assert not reopened(tmp_path, WHOLE, 1).kept_N.any()


def test_a_full_disk_leaves_what_is_there(tmp_path):
    residual = Residual(tmp_path, WHOLE)
    contribute(residual, WHOLE, 1)
    settle(residual, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(RunError, match="000002"):
            contribute(residual, WHOLE, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.array_equal(reopened(tmp_path, WHOLE, 2).kept_N, after(WHOLE, 1))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["away", "late", "in"]), st.booleans()), max_size=12),
    st.sampled_from([WHOLE, HALVES]),
)
def test_it_is_a_function_of_what_was_committed_whenever_it_is_restarted(
    tmp_path_factory, rounds, layout
):
    """Each round: whether we contribute and are in the roster; whether we are killed before it."""
    path = tmp_path_factory.mktemp("residual")
    residual = reopened(path, layout, INITIAL)
    committed = []
    for round_id, (part, is_killed) in enumerate(rounds, start=1):
        if part != "away":
            contribute(residual, layout, round_id)
        if is_killed:
            residual = reopened(path, layout, round_id - 1)
        settle(residual, round_id, committed=part == "in")
        if part == "in":
            committed.append(round_id)
        assert np.array_equal(residual.kept_N, after(layout, *committed))


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    residual = Residual(tmp_path, WHOLE)
    (tmp_path / ".DS_Store").write_bytes(b"of a file manager")
    contribute(residual, WHOLE, 1)
    settle(residual, 1)
    again = Residual(tmp_path, WHOLE)
    again.load(RoundId(1))
    assert np.array_equal(again.kept_N, dropped(1))
    again.clear()
    assert [path.name for path in tmp_path.iterdir()] == [".DS_Store"]
