import random
from collections import Counter
from itertools import pairwise, product
from math import fsum, inf

import pytest
from hypothesis import assume, given, settings, strategies as st

from atoll.exchange import plan
from atoll.exchange.plan import Link
from atoll.ids import PeerId

PEERS = [PeerId(f"{k:032x}") for k in range(8)]
A, B, C, D, *_ = PEERS
MBIT = 125_000.0  # bytes/s
HOME = {"up": 15 * MBIT, "down": 110 * MBIT}
SERVER = {"up": 1000 * MBIT, "down": 1000 * MBIT}
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


@settings(deadline=None)
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


@given(st.integers(1, 70), some_peers)
def test_equal_shares_are_the_even_assignment(num_slices, reducers):
    shares = dict.fromkeys(reducers, 1 / len(reducers))
    assert plan.assign_by_shares(num_slices, shares) == plan.assign(num_slices, reducers)


@given(
    st.integers(1, 128), st.dictionaries(st.sampled_from(PEERS), st.integers(0, 1000), min_size=2)
)
def test_runs_are_as_long_as_the_shares_say(num_slices, parts):
    total = sum(parts.values()) or 1
    shares = {peer: part / total for peer, part in parts.items()}
    assignment = plan.assign_by_shares(num_slices, shares)
    assert len(assignment) == num_slices
    in_order = [peer for peer, _, _ in plan.runs(assignment)]
    assert in_order == [peer for peer in shares if peer in in_order]
    if len(set(parts.values())) == 1:
        return  # the even assignment
    large = [peer for peer, share in shares.items() if share * num_slices >= 0.5]
    if large:
        assert set(in_order) <= set(large)
        scale = num_slices / sum(shares[peer] for peer in large)
        load = Counter(assignment)
        assert all(abs(load[peer] - shares[peer] * scale) < 1 for peer in large)


@pytest.mark.parametrize(
    ("num_slices", "shares", "lengths"),
    [
        (10, (0.5, 0.3, 0.2), (5, 3, 2)),
        (10, (0.46, 0.33, 0.21), (5, 3, 2)),  # remainders .6 .3 .1
        (10, (0.04, 0.48, 0.48), (0, 5, 5)),  # less than half a slice
        (10, (0.05, 0.475, 0.475), (0, 5, 5)),  # just half: .5 .75 .75 is what is left
        (10, (0.9, 0.05, 0.05), (9, 1, 0)),  # just half, and the first of equals
        (10, (0.0, 1.0, 0.0), (0, 10, 0)),
        (1, (0.3, 0.3, 0.4), (0, 0, 1)),  # all have less than half
    ],
)
def test_largest_remainders_have_the_slices_that_are_left(num_slices, shares, lengths):
    load = Counter(plan.assign_by_shares(num_slices, dict(zip((A, B, C), shares, strict=True))))
    assert tuple(load[peer] for peer in (A, B, C)) == lengths


@pytest.mark.parametrize(
    ("num_slices", "shares", "at_most", "lengths"),
    [
        (8, (0.9, 0.05, 0.05), 8, (8, 0, 0)),  # one is enough
        (8, (0.9, 0.05, 0.05), 4, (4, 2, 2)),  # one is not, so all have some
        (9, (0.9, 0.05, 0.05), 3, (3, 3, 3)),  # all together can just have so many
        (8, (0.9, 0.05, 0.05), 2, (8, 0, 0)),  # they cannot: then it is no bound
        (8, (0.55, 0.39, 0.06), 5, (5, 3, 0)),  # two are enough
        (8, (0.5, 0.3, 0.2), 2, (3, 3, 2)),  # nor can all: evenly, whatever the shares
    ],
)
def test_nobody_has_more_than_it_may_if_there_are_others(num_slices, shares, at_most, lengths):
    of_peers = dict(zip((A, B, C), shares, strict=True))
    load = Counter(plan.assign_by_shares(num_slices, of_peers, at_most=at_most))
    assert tuple(load[peer] for peer in (A, B, C)) == lengths


@given(
    st.integers(1, 64),
    st.dictionaries(st.sampled_from(PEERS), st.integers(0, 100), min_size=2),
    st.integers(1, 64),
)
def test_a_bound_is_kept_wherever_it_can_be(num_slices, parts, at_most):
    total = sum(parts.values()) or 1
    shares = {peer: part / total for peer, part in parts.items()}
    assignment = plan.assign_by_shares(num_slices, shares, at_most=at_most)
    assert len(assignment) == num_slices
    longest = max(stop - start for _, start, stop in plan.runs(assignment))
    assert longest <= at_most or at_most * len(shares) < num_slices


def test_what_the_small_ones_do_not_have_goes_to_the_others_by_their_shares():
    """Nine have less than half a slice each; of ten, .46 of .6 are 7.7, and .14 are 2.3."""
    shares = {A: 0.46, B: 0.14} | {PeerId(f"{k:032x}"): 0.4 / 9 for k in range(20, 29)}
    assert plan.assign_by_shares(10, shares) == (A,) * 8 + (B,) * 2


def test_lost_slices_go_to_those_who_lack_most_of_their_shares():
    shares = {A: 0.5, B: 0.3, C: 0.2}
    assignment = plan.assign_by_shares(20, shares)
    after = plan.reassign(assignment, lost=frozenset({A}), reducers=(B, C), shares=shares)
    assert Counter(after) == {B: 12, C: 8}
    assert after[10:] == assignment[10:]
    after = plan.reassign(assignment, lost=frozenset({B}), reducers=(A, C, D), shares=shares)
    assert Counter(after) == {A: 14, C: 6}, "D has no share"
    after = plan.reassign(assignment, lost=frozenset({A}), reducers=(D,), shares=shares)
    assert after[:10] == (D,) * 10, "whoever is left"


# --- shares of the work --------------------------------------------------------------------------


def slowest_s(links, shares, contribution_bytes, update_bytes):
    """Return the time of the exchange, written down as plainly as can be."""
    n = sum(link.contributes for link in links)
    slowest = 0.0
    for link in links:
        s = shares.get(link.peer, 0.0)
        if link.contributes:
            up = contribution_bytes * (1 - s) + update_bytes * s * (n - 1)
            down = contribution_bytes * s * (n - 1) + update_bytes * (1 - s)
        else:
            up, down = update_bytes * s * n, contribution_bytes * s * n
        slowest = max(slowest, up / link.up, down / link.down)
    return slowest


def of(links, sizes):
    return plan.shares_of_work(links, contribution_bytes=sizes[0], update_bytes=sizes[1])


def contributors(*lines, reduce=True):
    return [
        Link(peer, **line, contributes=True, reduces=reduce)
        for peer, line in zip(PEERS, lines, strict=False)
    ]


def up(rate):
    return {"up": rate, "down": inf}


rate = st.floats(1.0, 1e6)
sizes_of_blobs = st.tuples(st.integers(1, 10**7), st.integers(1, 10**7))


@st.composite
def fleets(draw, max_size=8):
    """A few members with lines of any speed, at least one of which reduces."""
    links = [
        Link(peer, draw(rate), draw(rate), contributes=draw(st.booleans()), reduces=True)
        if draw(st.booleans())
        else Link(peer, draw(rate), draw(rate), contributes=True, reduces=False)
        for peer in PEERS[: draw(st.integers(1, max_size))]
    ]
    assume(any(link.reduces for link in links))
    return links


@settings(deadline=None)
@given(fleets(), sizes_of_blobs, st.randoms(use_true_random=False))
def test_reducers_share_all_the_work_in_whatever_order_they_come(links, sizes, rng):
    shares = of(links, sizes)
    assert list(shares) == [link.peer for link in links if link.reduces]
    assert fsum(shares.values()) == pytest.approx(1, abs=1e-12)
    assert all(0 <= share <= 1 for share in shares.values())
    assert of(rng.sample(links, len(links)), sizes) == shares


@settings(deadline=None)
@given(fleets(), sizes_of_blobs)
def test_never_slower_than_with_equal_shares(links, sizes):
    reducers = [link.peer for link in links if link.reduces]
    equal = dict.fromkeys(reducers, 1 / len(reducers))
    best_s = slowest_s(links, of(links, sizes), *sizes)
    assert best_s <= slowest_s(links, equal, *sizes) * (1 + 1e-9) + 1e-12
    assert best_s == pytest.approx(
        plan.exchange_s(links, of(links, sizes), contribution_bytes=sizes[0], update_bytes=sizes[1])
    )


GRID = {n: [p for p in product(range(31), repeat=n) if sum(p) == 30] for n in (1, 2, 3)}


@settings(deadline=None)
@given(fleets(max_size=3), sizes_of_blobs)
def test_of_three_no_other_shares_are_faster(links, sizes):
    best_s = slowest_s(links, of(links, sizes), *sizes)
    reducers = [link.peer for link in links if link.reduces]
    for parts in GRID[len(reducers)]:
        other = {peer: part / 30 for peer, part in zip(reducers, parts, strict=True)}
        assert best_s <= slowest_s(links, other, *sizes) * (1 + 1e-9) + 1e-12


@settings(deadline=None)
@given(fleets(), sizes_of_blobs, st.integers(0, 10**9), st.sampled_from([1.0, 0.01, 1e-4]))
def test_no_other_shares_are_faster(links, sizes, seed, distance):
    """Near the best ones, a step in any direction is a step up: the time is convex."""
    shares, rng = of(links, sizes), random.Random(seed)
    best_s = slowest_s(links, shares, *sizes)
    for _ in range(50):
        moved = {peer: s + distance * rng.random() ** 4 for peer, s in shares.items()}
        total = sum(moved.values())
        other = {peer: share / total for peer, share in moved.items()}
        assert best_s <= slowest_s(links, other, *sizes) * (1 + 1e-9) + 1e-12


@settings(deadline=None)
@given(st.integers(1, 8), rate, rate, sizes_of_blobs)
def test_equal_lines_have_exactly_equal_shares(num_peers, up, down, sizes):
    line = {"up": up, "down": down}
    unknown = {"up": None, "down": None}
    for lines in ([line] * num_peers, [unknown] * num_peers, [line, *[unknown] * (num_peers - 1)]):
        links = contributors(*lines)
        assert of(links, sizes) == {link.peer: 1 / num_peers for link in links}


@pytest.mark.parametrize(
    ("links", "sizes", "expected", "seconds"),
    [
        (contributors(SERVER, SERVER), (10**8, 10**8), (0.5, 0.5), 0.8),
        # Everybody reduces but the homes: an upload of theirs is all that there is to wait for.
        (
            [
                *contributors(HOME, HOME, HOME, reduce=False),
                Link(D, **SERVER, contributes=False, reduces=True),
            ],
            (15 * 10**6, 15 * 10**6),
            (1.0,),
            8.0,
        ),
        # Three homes upload 1 + 2s each, the fourth peer is twice as fast: 3 (T-1)/2 + (2T-1)/2 = 1
        (contributors(up(1.0), up(1.0), up(1.0), up(2.0)), (1, 1), (0.1, 0.1, 0.1, 0.7), 1.2),
        # Large contributions, small updates: who reduces has less to upload. 4 - 3a = (4 - 3b) / 2
        (contributors(up(1.0), up(2.0)), (4, 1), (7 / 9, 2 / 9), 5 / 3),
        # The same with a downlink that the first is short of: (1 + 3a) / 2 = 4 - 3a
        (
            contributors({"up": 1.0, "down": 2.0}, up(100.0)),
            (4, 1),
            (7 / 9, 2 / 9),
            5 / 3,
        ),
        # One is slow: its down is full with nothing to reduce, its up not before a third is.
        (
            contributors(SERVER, SERVER, {"up": 1.0, "down": 1.0}),
            (10, 12),
            (0.5, 0.5, 0.0),
            12.0,
        ),
        # Two peers, as much up as down: whoever reduces, the same bytes move.
        (contributors(up(1.0), up(2.0)), (1, 1), (0.5, 0.5), 1.0),
        # One peer alone reduces for itself.
        (contributors(HOME), (10**8, 10**8), (1.0,), 0.0),
    ],
)
def test_shares_worked_out_by_hand(links, sizes, expected, seconds):
    shares = of(links, sizes)
    assert tuple(shares.values()) == pytest.approx(expected, abs=1e-9)
    assert slowest_s(links, shares, *sizes) == pytest.approx(seconds)


def test_those_who_cannot_be_dialled_reduce_nothing():
    homes = contributors(HOME, HOME, HOME, reduce=False)
    built_in = Link(D, None, None, contributes=False, reduces=True)
    assert of([*homes, built_in], (1000, 1000)) == {D: 1.0}
    assert of(homes, (1000, 1000)) == {}
    assert slowest_s([], {}, 1000, 1000) == plan.exchange_s(
        [], {}, contribution_bytes=1000, update_bytes=1000
    )


def test_a_line_that_broke_down_does_not_make_the_others_slower():
    good = [SERVER, up(500 * MBIT), up(500 * MBIT)]
    with_it = contributors(*good, {"up": 1.0, "down": 1.0})
    shares = of(with_it, (10**7, 10**7))
    assert shares.pop(D) == pytest.approx(0, abs=1e-9)
    out = [*with_it[:3], Link(D, 1.0, 1.0, contributes=True, reduces=False)]
    assert shares == pytest.approx(of(out, (10**7, 10**7)))
    assert shares[A] > 1.5 * shares[B] == pytest.approx(1.5 * shares[C])


def test_an_unknown_rate_counts_as_the_median_of_the_known_ones():
    lines = [up(1.0), up(3.0), up(4.0), up(None)]
    as_median = [up(1.0), up(3.0), up(4.0), up(3.0)]
    assert of(contributors(*lines), (1, 1)) == of(contributors(*as_median), (1, 1))


# --- shares of the mean --------------------------------------------------------------------------


@settings(deadline=None)
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


# --- in which order slices are sent --------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], []),
        ([(0, 3)], [0, 1, 2]),
        ([(0, 2), (2, 4)], [0, 2, 1, 3]),
        ([(0, 1), (1, 4), (4, 6)], [0, 1, 4, 2, 5, 3]),
    ],
)
def test_the_first_slice_of_every_run_is_sent_before_the_second_of_any(runs, expected):
    assert plan.send_order(runs) == expected


@given(st.lists(st.sampled_from(PEERS)))
def test_every_slice_is_sent_once_and_to_each_reducer_in_its_order(assignment):
    runs = [(start, stop) for _, start, stop in plan.runs(assignment)]
    order = plan.send_order(runs)
    assert sorted(order) == list(range(len(assignment)))
    for start, stop in runs:
        assert [index for index in order if start <= index < stop] == list(range(start, stop))
