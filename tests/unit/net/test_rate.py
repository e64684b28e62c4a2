import heapq

import pytest
from hypothesis import given, settings, strategies as st

from atoll.net.rate import RateLimit, on_the_wire

PIECES = st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 0.5)), min_size=1)
RATES = st.sampled_from([200_000, 1_900_000, 12_500_000])
PAYLOADS = st.lists(st.integers(1, 3_000_000), min_size=1, max_size=6)  # of one connection each


def test_headers_are_counted_per_record_and_per_packet():
    assert on_the_wire(0) == 0
    assert on_the_wire(100) == 100 + 22 + 52
    assert 1.036 < on_the_wire(10_000_000) / 10_000_000 < 1.039


def test_without_a_limit_nobody_waits():
    limit = RateLimit(0)
    assert [limit.spend(10**9, now=0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limit.piece_bytes(1000) == 1000


@settings(deadline=None, max_examples=30)
@given(RATES, PAYLOADS, st.booleans())
def test_a_busy_link_carries_what_was_set_within_five_percent(rate, payloads, pays_first):
    """Every connection moves its payload again and again: uploads pay first, downloads after."""
    limit, moved = RateLimit(rate), []
    turns = [(0.0, number, 0) for number in range(len(payloads))]
    while turns[0][0] < 2.5:
        now, number, at = heapq.heappop(turns)
        piece = min(limit.piece_bytes(262_144), payloads[number] - at)
        paid_at = now + limit.spend(piece, now=now)
        moved.append((paid_at if pays_first else now, on_the_wire(piece)))
        at = (at + piece) % payloads[number]
        # Timers are late, by up to 5 ms here; and then the next piece follows at once.
        heapq.heappush(turns, (paid_at + 0.005 * (number % 2), number, at))
    for start in (0.0, 0.3, 1.2):
        num_bytes = sum(size for when, size in moved if start <= when < start + 1)
        assert abs(num_bytes / rate - 1) < 0.05


@settings(deadline=None)
@given(PIECES)
def test_no_stretch_of_time_carries_more_than_its_share(pieces):
    limit, now, sent = RateLimit(10_000), 0.0, []
    for num_bytes, pause_s in pieces:
        now += pause_s
        now += limit.spend(num_bytes, now=now)
        sent.append((now, on_the_wire(num_bytes)))
    for first, (start, _) in enumerate(sent):
        in_stretch = sum(num_bytes for _, num_bytes in sent[first + 1 :])
        assert in_stretch <= 10_000 * (now - start + 0.015) + 1e-3


def test_several_connections_share_one_limit():
    limit = RateLimit(on_the_wire(500))
    waits = [limit.spend(500, now=0.0) for _ in range(3)]
    assert waits == pytest.approx([0.985, 1.985, 2.985])


def test_pieces_are_small_on_a_slow_link():
    assert RateLimit(500_000).piece_bytes(262_144) == 2000
    assert RateLimit(10).piece_bytes(262_144) == 1024
    assert RateLimit(10**9).piece_bytes(262_144) == 262_144
