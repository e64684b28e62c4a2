import numpy as np
import pytest

from atoll.errors import BadBlobError
from atoll.exchange import int4

ONE = 127 << 8  # the upper 16 bits of 1.0 after the sign: the exponent, and 8 bits of the fraction


def payload_of(scale_bits, codes):
    packed = [low | high << 4 for low, high in zip(codes[:16], codes[16:], strict=True)]
    return np.array([scale_bits], "<u2").tobytes() + bytes(packed)


def test_all_scales_come_first_then_half_a_block_beside_the_other():
    x_N = np.zeros(33)
    x_N[[0, 1, 16, 31, 32]] = [1, -1, 26 / 128, -12 / 128, -2.0]
    codes = [7, 15] + [0] * 14 + [2] + [0] * 14 + [9]
    second = payload_of(ONE + 256, [15] + [0] * 31)
    first = payload_of(ONE, codes)
    assert int4.encode(x_N) == first[:2] + second[:2] + first[2:] + second[2:]


def test_every_level_comes_back_as_it_was():
    levels_N = np.array([*range(8), *range(9, 16)])
    x_N = int4.SIGNED_LEVELS[levels_N].astype(np.float64)
    assert np.array_equal(int4.decode(int4.encode(x_N), 15), x_N)
    codes = [*levels_N, *[0] * 17]
    assert int4.encode(x_N) == payload_of(ONE, codes)


def test_a_scale_is_rounded_up_so_that_nothing_clips():
    for x in (1.0, 1.0 + 2.0**-8, 1.0 + 2.0**-20, 2.0 - 2.0**-23, 2.0**126, 3e-38, 1e-44):
        scale = int4.decode(int4.encode(np.array([x])), 1)[0]
        assert x <= scale or x < 2.0**-126
        assert scale <= max(x * (1 + 2.0**-8), 2.0**-126)


@pytest.mark.parametrize("scale_bits", [0, 1, 255, (253 << 8) + 1, 0xFF00, 0xFFFF])
def test_a_scale_that_is_none_is_refused(scale_bits):
    with pytest.raises(BadBlobError, match="scale"):
        int4.check(payload_of(scale_bits, [1] * 32), 32)


def test_the_least_and_the_largest_scale_are_taken():
    for scale_bits in (256, 253 << 8):
        assert np.isfinite(int4.check(payload_of(scale_bits, [15] * 32), 32))


@pytest.mark.parametrize("position", [0, 15, 16, 31])
def test_minus_zero_and_values_beyond_the_last_one_are_refused(position):
    codes = [0] * 32
    codes[position] = 8
    with pytest.raises(BadBlobError, match="level"):
        int4.check(payload_of(ONE, codes), 32)
    codes[position] = 1
    assert int4.check(payload_of(ONE, codes), position + 1) == (12 / 128) ** 2
    if position:
        with pytest.raises(BadBlobError, match="level"):
            int4.check(payload_of(ONE, codes), position)


def relative_error(x_N):
    return np.linalg.norm(int4.decode(int4.encode(x_N), len(x_N)) - x_N) / np.linalg.norm(x_N)


def test_relative_error_on_gaussian_and_on_heavy_tailed_values():
    rng = np.random.default_rng(0)
    assert relative_error(rng.standard_normal(1_000_000)) == pytest.approx(0.0888, rel=0.02)
    # The variance of this distribution is infinite: the figure depends on the largest few values.
    assert relative_error(rng.standard_t(2, 1_000_000)) == pytest.approx(0.075, rel=0.3)
