from hypothesis import given, settings, strategies as st

from atoll.net.rate import RateLimit

PIECES = st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 0.5)), min_size=1)


def test_without_a_limit_nobody_waits():
    limit = RateLimit(0)
    assert [limit.spend(10**9, now=0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limit.piece_bytes(1000) == 1000


def test_a_busy_link_carries_what_was_set_within_five_percent():
    limit, now, num_bytes = RateLimit(1_000_000), 100.0, 0
    while now < 110.0:
        now += limit.spend(20_000, now=now)
        num_bytes += 20_000
    assert abs(num_bytes / 10 - 1_000_000) < 50_000


@settings(deadline=None)
@given(PIECES)
def test_no_stretch_of_time_carries_more_than_its_share(pieces):
    limit, now, sent = RateLimit(10_000), 0.0, []
    for num_bytes, pause_s in pieces:
        now += pause_s
        now += limit.spend(num_bytes, now=now)
        sent.append((now, num_bytes))
    for first, (start, _) in enumerate(sent):
        in_stretch = sum(num_bytes for _, num_bytes in sent[first + 1 :])
        assert in_stretch <= 10_000 * (now - start + 0.05) + 1e-3


def test_several_connections_share_one_limit():
    limit = RateLimit(1000)
    limit.spend(50, now=0.0)  # what was saved up
    assert [limit.spend(500, now=0.0) for _ in range(3)] == [0.5, 1.0, 1.5]


def test_pieces_are_small_on_a_slow_link():
    assert RateLimit(100_000).piece_bytes(262_144) == 2000
    assert RateLimit(10).piece_bytes(262_144) == 1024
    assert RateLimit(10**9).piece_bytes(262_144) == 262_144
