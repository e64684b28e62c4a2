"""Who is late, in rounds as tables of times. Two arrivals of each slice are enough."""

from math import inf

import pytest
from hypothesis import assume, given, strategies as st
from tests.unit.host.scene import SYNC, A, B, C

from atoll.host.late import Arrivals, grace_s, late_reducers
from atoll.ids import PeerId

NEEDED = 2


def slice_of(*times: float, since: float = 10.0) -> Arrivals:
    return Arrivals(
        since=since,
        needed=NEEDED,
        arrived=len(times),
        last_at=max(times, default=since),
        done_at=sorted(times)[NEEDED - 1] if len(times) >= NEEDED else None,
    )


def late(work: dict[PeerId, list[Arrivals]], *, now, usual_s=None, opened_at=0.0):
    """Return who is late of these reducers, each with its slices."""
    assignment = [reducer for reducer, slices in work.items() for _ in slices]
    arrivals = [one for slices in work.values() for one in slices]
    return late_reducers(
        assignment, arrivals, opened_at=opened_at, usual_s=usual_s, now=now, policy=SYNC
    )


DONE = [slice_of(11, 12), slice_of(11, 12)]


# The others were done at 12; grace: 2 s and half of 12 s.
@pytest.mark.parametrize(("now", "expected"), [(19.9, set()), (20.0, {C})])
def test_who_trickles_on_long_after_the_others_is_late(now, expected):
    trickle = [slice_of(11, 19), slice_of(15)]
    assert late({A: DONE, B: DONE, C: trickle}, now=now) == expected


def test_silence_counts_as_a_pace_too():
    """All but one of a hundred slices came in the first second; nothing since."""
    almost = [slice_of(11, 11)] * 99 + [slice_of(11)]
    assert late({A: DONE * 50, C: almost}, now=21) == {C}


@pytest.mark.parametrize("first", [19.9, 11.0])
def test_who_is_done_before_others_could_be_may_finish(first):
    """Whatever came last shows its pace, not what came first of the slice that it lacks."""
    almost = [slice_of(19.5, 19.9)] * 7 + [slice_of(first)]
    assert late({A: DONE * 8, C: almost}, now=20.1) == set()


def test_the_grace_time_is_a_share_of_what_the_round_took():
    """It opened at 8, and the others were done 4 s later: 2 s, and half of 4."""
    trickle = [slice_of(11, 15.9), slice_of(15)]
    assert late({A: DONE, B: DONE, C: trickle}, now=15.9, opened_at=8) == set()
    assert late({A: DONE, B: DONE, C: trickle}, now=16.0, opened_at=8) == {C}


def test_the_fewer_are_done_the_longer_they_would_need_for_it():
    """Of eight slices a quarter is missing; those with two would need 8 s."""
    some = [slice_of(12, 19.9)] * 4 + [slice_of(19.9)] * 4
    assert late({A: DONE, C: some}, now=20) == set()
    assert late({A: DONE, B: DONE * 3, C: some}, now=20) == {C}


def test_the_slowest_of_those_that_are_done_says_how_long_they_would_need():
    some = [slice_of(12, 28.9)] * 2 + [slice_of(28.9)] * 6  # 6 of 16 are missing, at 1.9 s each
    assert late({A: DONE, B: [slice_of(11, 18)] * 2, C: some}, now=29) == set()  # 16 s
    assert late({A: DONE, B: [slice_of(11, 14)] * 2, C: some}, now=29) == {C}  # 8 s


def test_who_has_more_of_one_slice_than_is_needed_lacks_as_much_of_the_other():
    """Two of four are missing, at 18.5 s each; others would need 20 s."""
    crowded = slice_of(*range(11, 19))
    assert late({A: [slice_of(11, 30)] * 2, C: [crowded, slice_of()]}, now=47) == {C}


def test_who_got_its_slices_only_now_has_its_own_time():
    moved = [slice_of(since=19), slice_of(since=19)]
    assert late({A: DONE, B: moved}, now=30.4) == set()
    assert late({A: DONE, B: moved}, now=30.5) == {B}  # 19 s, and 2 s, and half of 19 s


def test_where_nobody_is_done_nobody_is_slower_than_others():
    assert late({A: [slice_of(11)], B: [slice_of()]}, now=1e6) == set()


def test_with_nobody_to_compare_with_earlier_rounds_are_the_measure():
    trickle = [slice_of(12), slice_of()]
    assert late({C: trickle}, now=19.9, usual_s=2.0) == set()
    assert late({C: trickle}, now=20.0, usual_s=2.0) == {C}  # 10 + 2, and 2 s, and half of 12 s


def test_before_the_first_slice_could_arrive_nobody_is_late():
    waiting = [slice_of(since=inf)]
    assert late({A: waiting, B: waiting}, now=1e6, usual_s=1.0) == set()


fleets = st.dictionaries(
    st.sampled_from([PeerId(f"{k:032x}") for k in range(8)]),
    st.tuples(st.integers(1, 6), st.floats(0.01, 100)),
    min_size=2,
)


def at(fleet: dict[PeerId, tuple[int, float]], now: float, begun_at: float = 10.0):
    """Return the work of reducers with so many slices, each arrival taking so many seconds."""
    return {
        reducer: [
            slice_of(
                *(
                    t
                    for j in range(NEEDED)
                    if (t := begun_at + (NEEDED * k + j + 1) * each_s) <= now
                ),
                since=begun_at,
            )
            for k in range(num_slices)
        ]
        for reducer, (num_slices, each_s) in fleet.items()
    }


@given(fleets, st.floats(10, 2000))
def test_never_all_are_late_and_never_one_that_is_done(fleet, now):
    work = at(fleet, now)
    found = late(work, now=now)
    done = {r for r, slices in work.items() if all(s.done_at is not None for s in slices)}
    assert not found & done
    assert not found or done


@given(fleets, st.floats(0.5, 1.4), st.floats(10, 2000))
def test_a_fleet_whose_reducers_differ_by_less_than_the_grace_waits_for_all(fleet, spread, now):
    """However slow all of them are together."""
    slowest_s = max(each_s for _, each_s in fleet.values())
    fleet = {r: (3, slowest_s * spread if k % 2 else slowest_s) for k, r in enumerate(fleet)}
    ends = sorted(10 + 3 * NEEDED * each_s for _, each_s in fleet.values())
    assume(ends[-1] <= ends[0] + grace_s(ends[0], SYNC))
    assert late(at(fleet, now), now=now) == set()


@given(fleets, st.integers(0, 7))
def test_one_that_has_stopped_is_late_within_the_grace_and_what_others_need_for_it(fleet, which):
    fleet = {r: (num_slices, 0.1) for r, (num_slices, _) in fleet.items()}
    victim = list(fleet)[which % len(fleet)]
    fleet[victim] = (fleet[victim][0], 1e6)
    base = max(10 + NEEDED * n * 0.1 for r, (n, _) in fleet.items() if r != victim)
    now = base + grace_s(base, SYNC)
    assert late(at(fleet, now - 0.01), now=now - 0.01) == set()
    assert late(at(fleet, now + 0.01), now=now + 0.01) == {victim}
