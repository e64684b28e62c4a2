import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import BadBlobError
from atoll.exchange import sparse, sparse8

both = pytest.mark.parametrize("codec", [sparse, sparse8], ids=["sparse", "sparse8"])


def places_of(x_N):
    return np.flatnonzero(x_N)


def expected_places(x_N, entries):
    """Return where the largest sizes are, by a full sort; of equal ones the first count."""
    return np.sort(np.argsort(-np.abs(x_N), kind="stable")[:entries])


def test_sizes_follow_from_the_number_of_values():
    assert [sparse.encoded_bytes(n) for n in (0, 1, 64, 65, 4096, 4097)] == [
        0,
        11,
        11,
        12,
        120,
        131,
    ]
    assert [sparse8.encoded_bytes(n) for n in (0, 1, 16, 17, 4096, 4097)] == [
        *(0, 7, 7, 9, 644, 651)
    ]


@settings(deadline=None)
@given(
    st.sampled_from([(sparse, 64), (sparse8, 16)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 17, 64, 300, 4095, 4096]),
    st.sampled_from([1, 2, 5, 1000, 10**6]),
)
def test_the_largest_are_kept_and_the_first_of_equal_ones(which, seed, num_values, num_sizes):
    codec, values_per_entry = which
    rng = np.random.default_rng(seed)
    x_N = rng.integers(1, num_sizes + 1, num_values) * rng.choice([-1.0, 1.0], num_values)
    x_N *= 2.0 ** rng.integers(-100, 100)
    decoded_N = codec.decode(codec.encode(x_N), num_values)
    entries = -(-num_values // values_per_entry)
    kept = expected_places(x_N, entries)
    assert set(places_of(decoded_N)) <= set(kept)
    if codec is sparse:
        assert np.array_equal(places_of(decoded_N), kept)
        assert np.array_equal(np.sign(decoded_N[kept]), np.sign(x_N[kept]))


def test_the_magnitudes_are_the_means_below_and_above_the_mean():
    x_N = np.zeros(64 * 5)
    x_N[[1, 50, 100, 200, 319]] = [1, -2, 3, -10, 14]  # their mean is 6
    decoded_N = sparse.decode(sparse.encode(x_N), len(x_N))
    assert decoded_N[[1, 50, 100, 200, 319]].tolist() == [2, -2, 2, -12, 12]


def test_where_fewer_than_that_are_not_zero_zeros_stay_zero():
    x_N = np.zeros(4096)
    x_N[[7, 4095]] = [-1, 1000]
    decoded_N = sparse.decode(sparse.encode(x_N), 4096)
    assert places_of(decoded_N).tolist() == [7, 4095]
    assert decoded_N[[7, 4095]].tolist() == [-500.5, 500.5]


def test_chunks_are_on_their_own():
    rng = np.random.default_rng(0)
    x_N = (
        rng.standard_normal(2 * 4096 + 1000) * np.repeat([1e-9, 1.0, 1e9], 4096)[: 2 * 4096 + 1000]
    )
    for codec in (sparse, sparse8):
        decoded_N = codec.decode(codec.encode(x_N), len(x_N))
        for start in (0, 4096, 8192):
            part_N = x_N[start : start + 4096]
            alone_N = codec.decode(codec.encode(part_N), len(part_N))
            assert np.array_equal(decoded_N[start : start + 4096], alone_N)


def test_a_mean_of_four_contributions_keeps_all_their_places():
    rng = np.random.default_rng(0)
    total_N = np.zeros(3 * 4096)
    for _ in range(4):
        sparse.accumulate_(total_N, sparse.encode(rng.standard_normal(len(total_N))), share=0.25)
    decoded_N = sparse8.decode(sparse8.encode(total_N), len(total_N))
    assert np.array_equal(places_of(decoded_N), places_of(total_N))
    assert np.abs(decoded_N - total_N).max() <= np.abs(total_N).max() / 254 * (1 + 1e-5)


@both
def test_places_that_do_not_ascend_are_refused(codec):
    payload = bytearray(codec.encode(np.arange(1.0, 4097.0)))
    first = 8 if codec is sparse else 4
    codec.check(payload, 4096)
    payload[first + 3 : first + 6] = payload[first : first + 3]  # entries 2, 3 are 0, 1 again
    with pytest.raises(BadBlobError, match="ascend"):
        codec.check(payload, 4096)


@both
@pytest.mark.parametrize("num_values", [1, 100, 4095])
def test_a_place_beyond_a_short_last_chunk_is_refused_and_never_written_to(codec, num_values):
    payload = bytearray(codec.encode(np.ones(num_values)))
    entries = -(-num_values // (64 if codec is sparse else 16))
    first = 8 if codec is sparse else 4
    last_bits = entries * 12 - 12
    for bit in range(last_bits, last_bits + 12):  # the last place becomes 4095
        payload[first + bit // 8] |= 1 << bit % 8
    with pytest.raises(BadBlobError, match="beyond"):
        codec.check(payload, num_values)
    surrounded_N = np.zeros(num_values + 8192)
    codec.accumulate_(surrounded_N[:num_values], payload, share=1.0)
    assert not surrounded_N[num_values:].any()


@pytest.mark.parametrize("magnitude", [-1.0, np.nan, np.inf, 2.0**127])
@pytest.mark.parametrize("which", [0, 1])
def test_a_magnitude_that_is_none_is_refused(magnitude, which):
    payload = bytearray(sparse.encode(np.ones(64)))
    payload[4 * which : 4 * which + 4] = np.array([magnitude], "<f4").tobytes()
    with pytest.raises(BadBlobError, match="magnitude"):
        sparse.check(payload, 64)


@pytest.mark.parametrize("byte", [9, 10])
def test_bits_that_follow_the_last_entry_are_refused(byte):
    payload = bytearray(sparse.encode(np.ones(64)))  # one entry: 12 bits of place, 2 bits of code
    payload[byte] |= 0x80
    with pytest.raises(BadBlobError):
        sparse.check(payload, 64)


@pytest.mark.parametrize("scale", [-1.0, 0.0, np.nan, np.inf, 2.0**120])
def test_a_scale_that_is_none_is_refused(scale):
    payload = np.array([scale], "<f4").tobytes() + sparse8.encode(np.ones(16))[4:]
    with pytest.raises(BadBlobError, match="scale"):
        sparse8.check(payload, 16)


def test_a_level_that_is_none_is_refused():
    payload = sparse8.encode(np.ones(16))[:-1] + b"\x80"
    with pytest.raises(BadBlobError, match="level"):
        sparse8.check(payload, 16)
