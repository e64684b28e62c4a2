"""What is learnt of a line, from transfers over simulated lines of known rates."""

from collections import deque
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import given, settings, strategies as st

from atoll.exchange.rates import LineRate, best_rate
from atoll.units import KIB, MIB

HOME = 1_875_000.0  # bytes/s: 15 Mb/s
SLICE_BYTES = 64 * KIB
ROUND_BYTES = 4 * MIB
WINDOW_BINS = 4
LONG_BINS = 32
BIN_S = 1 / 16


@dataclass
class Flow:
    """To a partner that takes so many bytes per second; `buffer_bytes` are swallowed at once."""

    num_bytes: float
    rate: float = inf
    begins_at: float = 0.0
    buffer_bytes: float = 0.0


class Line:
    """A line that its flows share fairly, each slice by slice; `measured` is what is learnt."""

    def __init__(self):
        self.measured = LineRate()
        self.now = 0.0

    def round(self, rate, *flows):
        """Move all that; return what was learnt then."""
        self.move(rate, *flows)
        return self.measured.end_round()

    def move(self, rate, *flows):
        began_at = self.now
        waiting = deque(sorted(flows, key=lambda flow: flow.begins_at))
        moving = []  # each: the flow, what its slice still needs, the slice, its begin
        while waiting or moving:
            while waiting and began_at + waiting[0].begins_at <= self.now:
                moving.append(self.next_slice(waiting.popleft()))
            begins = [began_at + waiting[0].begins_at] if waiting else []
            rates = shared(rate, [flow.rate for flow, *_ in moving])
            ends = [self.now + one[1] / of for one, of in zip(moving, rates, strict=True)]
            before, self.now = self.now, min(begins + ends)
            for one, of, end in zip(list(moving), rates, ends, strict=True):
                one[1] -= (self.now - before) * of
                if end <= self.now:
                    flow, _, size, began_s = one
                    self.measured.end(began_s, now=self.now, num_bytes=size)
                    moving.remove(one)
                    if flow.num_bytes > 0:
                        moving.append(self.next_slice(flow))

    def next_slice(self, flow):
        size = min(SLICE_BYTES, flow.num_bytes)
        swallowed = min(size, flow.buffer_bytes)
        flow.num_bytes -= size
        flow.buffer_bytes -= swallowed
        return [flow, size - swallowed, int(size), self.measured.begin(self.now)]


def shared(rate, wanted):
    """Return what each has that wants so much: nobody more than a fair part of what is left."""
    result, left = [0.0] * len(wanted), rate
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    for place, k in enumerate(order):
        result[k] = min(wanted[k], left / (len(order) - place))
        left -= result[k]
    return result


# --- one round -----------------------------------------------------------------------------------


def test_nothing_is_known_until_a_round_has_moved_something():
    line = Line()
    assert line.measured.estimate is None
    assert line.measured.end_round() is None
    assert line.round(2 * MIB, Flow(2 * MIB)) == pytest.approx(2 * MIB, rel=0.01)
    assert line.measured.estimate == pytest.approx(2 * MIB, rel=0.01)
    assert line.measured.end_round() is None, "it counts once"


def test_a_round_of_too_little_goes_on():
    line = Line()
    for _ in range(7):
        assert line.round(10 * MIB, Flow(64 * KIB)) is None
    assert line.round(10 * MIB, Flow(64 * KIB)) == pytest.approx(10 * MIB)


def test_transfers_that_take_no_time_or_fail_teach_nothing():
    measured = LineRate()
    measured.end(measured.begin(1.0), now=1.0, num_bytes=MIB)
    assert measured.end_round() is None
    measured = LineRate()
    measured.end(measured.begin(1.0), now=9.0, num_bytes=0)
    assert measured.end_round() is None


def test_idle_time_does_not_count():
    line = Line()
    for _ in range(20):
        line.move(HOME, Flow(128 * KIB))
        line.now += 10.0
    assert line.measured.end_round() == pytest.approx(HOME, rel=0.01)


@pytest.mark.parametrize("num_flows", [1, 2, 3, 8, 20])
def test_a_line_that_is_shared_is_known_to_a_twentieth(num_flows):
    flows = (Flow(ROUND_BYTES, begins_at=0.01 * k) for k in range(num_flows))
    assert Line().round(HOME, *flows) == pytest.approx(HOME, rel=0.05)


def test_of_a_transfer_only_what_lies_within_the_round_counts():
    measured = LineRate()
    long = measured.begin(0.0)
    measured.end(measured.begin(0.0), now=10.0, num_bytes=10 * MIB)
    assert measured.end_round() == pytest.approx(MIB)
    measured.end(long, now=20.0, num_bytes=20 * MIB)
    assert measured.end_round() == pytest.approx(MIB)


@pytest.mark.parametrize("slow", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("slow_first", [False, True])
def test_a_slow_partner_that_is_alone_for_ten_times_as_long_does_not_lower_the_rate(
    slow, slow_first
):
    seconds = ROUND_BYTES / HOME
    fast = Flow(ROUND_BYTES, begins_at=10 * seconds if slow_first else 0.0)
    one = Flow(11 * slow * ROUND_BYTES, rate=slow * HOME)
    line = Line()
    for _ in range(4):
        assert line.round(HOME, Flow(**vars(fast)), Flow(**vars(one))) >= 0.98 * HOME


def test_a_receiver_that_is_frozen_does_not_lower_the_rate():
    line = Line()
    frozen = line.measured.begin(0.0)
    line.move(HOME, Flow(ROUND_BYTES))
    line.now += 60.0
    line.measured.end(frozen, now=line.now, num_bytes=0)
    assert line.measured.end_round() == pytest.approx(HOME, rel=0.02)


@settings(deadline=None)
@given(num_flows=st.integers(1, 16), rate=st.floats(1e4, 1e8), slices=st.integers(16, 64))
def test_buffers_that_swallow_what_comes_first_raise_the_rate_by_a_third_at_most(
    num_flows, rate, slices
):
    """Unless everything together is too little: then the round goes on."""
    flows = [Flow(slices * SLICE_BYTES, buffer_bytes=64 * KIB) for _ in range(num_flows)]
    assert rate * 0.98 <= Line().round(rate, *flows) <= rate * 4 / 3 * 1.02


@settings(deadline=None, max_examples=200)
@given(
    rate=st.floats(2e5, 5e7),
    partners=st.lists(
        st.tuples(st.floats(0.001, 3.0), st.floats(0, 20), st.integers(1, 40)), max_size=6
    ),
    begins_at=st.floats(0, 20),
)
def test_a_line_that_was_full_for_a_while_is_known_whoever_else_is_there(rate, partners, begins_at):
    """`partners`: rates as parts of the line's, when each begins, and slices."""
    full_bytes = max(4 * (1 + len(partners)) * 256 * KIB, rate)
    flows = [Flow(n * SLICE_BYTES, rate=part * rate, begins_at=at) for part, at, n in partners]
    known = Line().round(rate, Flow(full_bytes, begins_at=begins_at), *flows)
    assert 0.75 * rate <= known <= 1.25 * rate


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 60), st.floats(0, 1e6)), st.floats(1, 3e6))
def test_the_fastest_window_is_that_of_all_windows(bin_bytes, least_bytes):
    """Of those that are long enough, and that no shorter one with the same end could replace."""
    found = best_rate(bin_bytes, least_bytes=least_bytes)
    much_bytes = max(least_bytes, sum(bin_bytes.values()) / 3)
    indices = range(min(bin_bytes, default=0), max(bin_bytes, default=-1) + 1)
    rates = [
        held / (BIN_S * (end - begin))
        for begin in indices
        for end in range(begin + WINDOW_BINS, indices.stop + 1)
        if (held := sum(bin_bytes.get(k, 0.0) for k in range(begin, end)))
        >= (much_bytes if end - begin < LONG_BINS else least_bytes)
    ]
    if not rates:
        assert found is None
    else:
        assert found <= max(rates) * (1 + 1e-9)
        assert any(found == pytest.approx(rate) for rate in rates)
        if len(indices) < LONG_BINS:
            assert found >= max(rates) / 2


# --- round after round ---------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.01, 0.5])
def test_a_line_that_becomes_slower_is_noticed_within_two_rounds(factor):
    line = Line()
    for _ in range(10):
        line.round(HOME, Flow(ROUND_BYTES))
    for _ in range(2):
        assert line.measured.estimate == pytest.approx(HOME, rel=0.02)
        line.round(factor * HOME, Flow(factor * ROUND_BYTES))
    assert line.measured.estimate == pytest.approx(factor * HOME, rel=0.02)


def test_a_line_that_becomes_faster_is_noticed_at_once():
    line = Line()
    line.round(HOME, Flow(ROUND_BYTES))
    line.round(4 * HOME, Flow(ROUND_BYTES))
    assert line.measured.estimate == pytest.approx(4 * HOME, rel=0.02)


def test_after_rounds_with_slow_partners_only_one_makes_it_good():
    line = Line()
    for _ in range(5):
        line.round(HOME, Flow(ROUND_BYTES, rate=0.1 * HOME))
    assert line.measured.estimate == pytest.approx(0.1 * HOME, rel=0.02)
    line.round(HOME, Flow(ROUND_BYTES))
    assert line.measured.estimate == pytest.approx(HOME, rel=0.02)


# --- what two seconds hold -----------------------------------------------------------------------


def test_a_moment_in_which_a_queue_lets_go_does_not_make_a_long_round_fast():
    """A stall of 0.1 s, whose bytes come in the next 0.1 s beside those that are due."""
    bins = dict.fromkeys(range(48), 1e6)
    for stall in range(3, 45, 8):
        bins[stall], bins[stall + 1] = 0.0, 2e6
    assert best_rate(bins, least_bytes=1e6) <= 1.07 * 16e6


def test_a_fast_partner_is_seen_however_long_a_slow_one_takes():
    bins = dict.fromkeys(range(600), 1e4) | dict.fromkeys(range(300, 332), 1e6)
    assert best_rate(bins, least_bytes=1e6) == pytest.approx(16e6, rel=0.01)
