import numpy as np
import pytest

from atoll.errors import BadBlobError
from atoll.exchange import int8

TINY = np.finfo(np.float32).tiny


def payload_of(scale, levels):
    return np.array([scale], "<f4").tobytes() + np.array(levels, np.int8).tobytes()


def test_all_scales_come_first_then_all_levels():
    x_N = np.concatenate([np.full(128, 254.0), [-127.0, 1.0, 0.5, -0.5]])
    levels = [127] * 128 + [-127, 1, 0, 0]
    assert int8.encode(x_N) == np.array([2.0, 1.0], "<f4").tobytes() + bytes(
        level & 255 for level in levels
    )


def test_a_block_of_zeros_and_one_of_subnormals_have_the_least_scale():
    assert int8.encode(np.zeros(2)) == payload_of(TINY, [0, 0])
    assert int8.encode(np.array([2.0**-149, -TINY])) == payload_of(TINY, [0, -1])


@pytest.mark.parametrize("scale", [-1.0, -0.0, 0.0, 1e-40, np.nan, np.inf, -np.inf, 2.0**120])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(BadBlobError, match="scale"):
        int8.check(payload_of(scale, [1, 2]), 2)


def test_a_level_that_is_none_is_refused():
    with pytest.raises(BadBlobError, match="level"):
        int8.check(payload_of(1.0, [-128, 0]), 2)


def relative_error(x_N):
    return np.linalg.norm(int8.decode(int8.encode(x_N), len(x_N)) - x_N) / np.linalg.norm(x_N)


def test_relative_error_on_gaussian_and_on_heavy_tailed_values():
    rng = np.random.default_rng(0)
    assert relative_error(rng.standard_normal(4_000_000)) == pytest.approx(0.0065, rel=0.02)
    # The variance of this distribution is infinite: the figure depends on the largest few values.
    assert relative_error(rng.standard_t(2, 4_000_000)) == pytest.approx(0.016, rel=0.25)
    rows = rng.standard_normal((1000, 1024)) * np.exp(rng.uniform(-5, 5, (1000, 1)))
    assert relative_error(rows.reshape(-1)) == pytest.approx(0.0065, rel=0.02)
