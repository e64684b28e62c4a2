import random

import pytest
from hypothesis import given, settings, strategies as st

from atoll.exchange.rates import Busy, LinkRates
from atoll.units import KIB, MIB

HOME = 1_875_000.0  # bytes/s: 15 Mb/s
SLICE_BYTES = 256 * KIB
NUM_SLICES = 32
ROUND_BYTES = NUM_SLICES * SLICE_BYTES


def rates():
    return LinkRates(half_life_bytes=ROUND_BYTES)


def send(known, num_slices, bytes_per_s):
    for _ in range(num_slices):
        known.note_up(SLICE_BYTES, SLICE_BYTES / bytes_per_s)


def test_nothing_is_known_until_something_was_measured():
    known = rates()
    assert (known.up, known.down) == (None, None)
    known.note_up(MIB, 0.5)
    assert (known.up, known.down) == (2 * MIB, None)
    known.note_down(MIB, 0.25)
    assert (known.up, known.down) == (2 * MIB, 4 * MIB)


def test_tiny_transfers_and_those_of_no_time_teach_nothing():
    known = rates()
    known.note_up(64 * KIB - 1, 1e-6)
    known.note_up(MIB, 0.0)
    assert known.up is None


def test_a_steady_line_is_known_from_its_first_transfer_on():
    known = rates()
    for _ in range(5 * NUM_SLICES):
        send(known, 1, HOME)
        assert known.up == pytest.approx(HOME)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_line_that_becomes_slower_is_noticed_within_two_rounds(share):
    known = rates()
    send(known, 10 * NUM_SLICES, HOME)
    send(known, 2 * NUM_SLICES, share * HOME)
    assert known.up == pytest.approx(share * HOME)


def test_a_line_that_breaks_down_is_noticed_although_it_moves_next_to_nothing():
    known = rates()
    send(known, 10 * NUM_SLICES, HOME)
    send(known, NUM_SLICES // 4, 0.01 * HOME)
    assert known.up == pytest.approx(0.01 * HOME)


def test_a_line_that_becomes_faster_is_noticed_within_a_round():
    known = rates()
    send(known, 10 * NUM_SLICES, HOME)
    send(known, NUM_SLICES, 4 * HOME)
    assert known.up == pytest.approx(4 * HOME)


def test_a_buffer_that_takes_the_first_bytes_does_not_make_the_line_faster():
    known, buffer_bytes = rates(), 192 * KIB
    for _ in range(4):  # rounds; between them, the buffer runs empty
        known.note_up(SLICE_BYTES, (SLICE_BYTES - buffer_bytes) / HOME)
        send(known, NUM_SLICES - 1, HOME)
        assert known.up <= 1.1 * HOME
    known.note_up(SLICE_BYTES, 1e-4)
    assert known.up <= 1.1 * HOME


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_slow_receiver_among_three_does_not_lower_the_estimate(share):
    known = rates()
    for _ in range(5):  # rounds: first to the fast ones, at last to the slow one
        send(known, 2 * NUM_SLICES // 3, HOME)
        send(known, NUM_SLICES // 6, share * HOME)  # half of its slices went beside the others
        assert known.up == pytest.approx(HOME)


def test_frozen_receivers_now_and_then_do_not_lower_the_estimate():
    known = rates()
    send(known, NUM_SLICES, HOME)
    for _ in range(5):
        send(known, NUM_SLICES, HOME)
        known.note_up(SLICE_BYTES, 60.0)
        assert known.up == pytest.approx(HOME)


def test_after_a_round_with_slow_receivers_only_a_round_makes_it_good():
    known = rates()
    send(known, 5 * NUM_SLICES, HOME)
    send(known, 5 * NUM_SLICES, 0.1 * HOME)
    assert known.up == pytest.approx(0.1 * HOME)
    send(known, NUM_SLICES, HOME)
    assert known.up == pytest.approx(HOME)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e4)), max_size=60))
def test_the_estimate_is_within_the_measured_rates(transfers):
    known = rates()
    for num_bytes, seconds in transfers:
        known.note_up(num_bytes, seconds)
    measured = [b / s for b, s in transfers if b and s and (b >= 64 * KIB or s >= 0.25)]
    if measured:
        assert min(measured) * (1 - 1e-9) <= known.up <= max(measured) * (1 + 1e-9)
    else:
        assert known.up is None


def test_short_stretches_count_together():
    """Each is too short to say anything; one in ten of them is a burst."""
    one, joined = rates(), rates()
    size = 64 * KIB
    for number in range(100):
        seconds = size / HOME if number % 10 else 1e-3
        one.note_up(size, seconds)
    joined.note_up(100 * size, 90 * size / HOME + 10e-3)
    assert one.up == pytest.approx(joined.up, rel=0.15)


# --- busy time -----------------------------------------------------------------------------------


def stretches(*transfers):
    """Return what `Busy` notes of transfers (begin, end, bytes)."""
    noted = []
    busy = Busy(lambda num_bytes, seconds: noted.append((num_bytes, seconds)))
    moments = [(begin, 1, k) for k, (begin, _, _) in enumerate(transfers)]
    moments += [(end, 0 if end > begin else 2, k) for k, (begin, end, _) in enumerate(transfers)]
    began = {}
    for moment, what, k in sorted(moments):
        if what == 1:
            began[k] = busy.begin(moment)
        else:
            busy.end(began[k], now=moment, num_bytes=transfers[k][2])
    return noted


def test_idle_time_does_not_count():
    assert stretches((0, 2, 100), (10, 11, 50)) == [(100, 2), (50, 1)]


def test_transfers_that_overlap_are_one_stretch():
    assert stretches((0, 2, 100), (1, 4, 100), (3, 5, 100)) == [(300, 5)]


def test_a_transfer_that_hangs_does_not_hide_the_others():
    many = [(k, k + 1, 100) for k in range(40)]
    *before, last = stretches((0, 1000, 100), *many)
    assert before == [(1600, 16), (1600, 16)]
    assert last == (800, 968), "not with the one that began before this stretch"


def test_a_transfer_that_failed_is_over_and_moved_nothing():
    assert stretches((0, 1, 0), (5, 6, 7)) == [(0, 1), (7, 1)]


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 8), st.sampled_from([0.0, 0.3, 0.8]))
def test_no_stretch_is_faster_than_the_line(seed, width, stalls):
    """A line of 1 byte/s that `width` flows share; now and then one of them stalls for a while."""
    rng, now, noted = random.Random(seed), 0.0, []
    busy = Busy(lambda num_bytes, seconds: noted.append((num_bytes, seconds)))
    flows = []  # each: the bytes left, those in all, begin, end of the stall
    for _ in range(300):
        for _ in range(width - len(flows)):
            size = rng.randint(50, 100)
            flows.append([size, size, busy.begin(now), now])
        sending = [flow for flow in flows if flow[3] <= now]
        if not sending:
            now = min(flow[3] for flow in flows)
            continue
        seconds = min(flow[0] for flow in sending) * len(sending)
        now += seconds
        for flow in sending:
            flow[0] -= seconds / len(sending)
            if rng.random() < stalls:
                flow[3] = now + rng.random() * 300
        for flow in [flow for flow in sending if flow[0] < 1e-6]:
            flows.remove(flow)
            busy.end(flow[2], now=now, num_bytes=flow[1])
    assert all(num_bytes <= seconds * (1 + 1e-6) for num_bytes, seconds in noted)
    assert stalls or any(0.85 * seconds <= num_bytes for num_bytes, seconds in noted if num_bytes)
