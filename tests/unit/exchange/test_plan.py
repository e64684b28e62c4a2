from collections import Counter
from itertools import pairwise
from math import fsum

import pytest
from hypothesis import given, strategies as st

from atoll.exchange import plan
from atoll.ids import PeerId

PEERS = [PeerId(f"{k:032x}") for k in range(8)]
A, B, C, *_ = PEERS
some_peers = st.lists(st.sampled_from(PEERS), min_size=1, unique=True)


@given(st.integers(1, 70), some_peers)
def test_slices_are_dealt_out_evenly_in_one_run_for_each_reducer(num_slices, reducers):
    assignment = plan.assign(num_slices, reducers)
    assert len(assignment) == num_slices
    load = Counter(assignment)
    counts = [load[peer] for peer in reducers]
    assert max(counts) - min(counts) <= 1
    in_order = [peer for peer, _, _ in plan.runs(assignment)]
    assert in_order == [peer for peer in reducers if load[peer]]


@given(st.lists(st.sampled_from(PEERS)))
def test_runs_are_the_assignment(assignment):
    runs = plan.runs(assignment)
    assert [peer for peer, start, stop in runs for _ in range(start, stop)] == assignment
    assert all(start < stop for _, start, stop in runs)
    assert all(one[0] != other[0] for one, other in pairwise(runs))
    assert all(one[2] == other[1] for one, other in pairwise(runs))


@given(st.integers(1, 70), some_peers, st.data())
def test_only_the_slices_of_lost_reducers_move_and_to_those_with_the_least(
    num_slices, reducers, data
):
    assignment = plan.assign(num_slices, reducers)
    lost = frozenset(data.draw(st.sets(st.sampled_from(reducers))))
    others = data.draw(
        st.lists(st.sampled_from([p for p in PEERS if p not in lost] or [A]), min_size=1)
    )
    candidates = sorted(set(others) - lost) or [PeerId("f" * 32)]
    after = plan.reassign(assignment, lost=lost, reducers=candidates)
    for old, new in zip(assignment, after, strict=True):
        assert new == old if old not in lost else new in candidates
    before = Counter(p for p in assignment if p not in lost)
    gained = Counter(after) - before
    highest = max((before[p] + gained[p] for p in gained), default=0)
    for peer in candidates:
        assert before[peer] + gained[peer] >= highest - 1


def test_equal_load_goes_to_the_first():
    assert plan.reassign((A, A, A), lost=frozenset({A}), reducers=(C, B)) == (C, B, C)


@given(
    st.dictionaries(
        st.sampled_from(PEERS),
        st.tuples(st.integers(1, 10**9), st.floats(0, 1e150, allow_subnormal=False)),
        min_size=1,
    ),
    st.floats(0.1, 100),
)
def test_shares_add_up_to_one_in_the_order_of_peers(contributors, clip):
    tokens = {peer: num for peer, (num, _) in contributors.items()}
    norms = {peer: norm for peer, (_, norm) in contributors.items()}
    shares = plan.shares(tokens, norms, clip_to_median=clip)
    assert list(shares) == sorted(contributors)
    assert fsum(shares.values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares.values())


def test_one_contributor_has_all_whatever_its_norm():
    for norm in (0.0, 1e-300, 1.0, 1e150):
        assert plan.shares({A: 7}, {A: norm}, clip_to_median=0.5) == {A: 1.0}


@pytest.mark.parametrize(
    ("tokens", "norms", "expected"),
    [
        ((10, 10, 10), (1.0, 1.0, 1.0), (1 / 3, 1 / 3, 1 / 3)),
        ((10, 30, 0), (1.0, 1.0, 1.0), (0.25, 0.75, 0.0)),
        ((10, 10, 10), (1.0, 1.0, 3.0), (1 / 3, 1 / 3, 1 / 3)),  # three medians: just within
        ((10, 10, 10), (1.0, 1.0, 6.0), (0.4, 0.4, 0.2)),
        ((10, 10, 10), (0.0, 0.0, 6.0), (0.5, 0.5, 0.0)),
        ((10, 10, 10), (0.0, 0.0, 0.0), (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_shares_are_tokens_clipped_by_the_norm(tokens, norms, expected):
    peers = (A, B, C)
    shares = plan.shares(
        dict(zip(peers, tokens, strict=True)),
        dict(zip(peers, norms, strict=True)),
        clip_to_median=3.0,
    )
    assert tuple(shares.values()) == pytest.approx(expected)
