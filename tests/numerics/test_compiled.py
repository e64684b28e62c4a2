"""Each kernel, compiled, gives the bits that its lines give in plain Python."""

import numpy as np
import pytest

from atoll.exchange import int8, values
from atoll.outer import nesterov

N = 300


def normal(seed, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(N).astype(dtype)


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (nesterov._outer_step_, lambda: (normal(1, "f4"), normal(2, "f4"), normal(3), 0.7, 0.9)),
        (values._num_unfit, lambda: (np.append(normal(1), [np.nan, 1e300]),)),
        (values._squared_norm, lambda: (normal(1, "f4"),)),
        (values.add_scaled_, lambda: (normal(1), normal(2), 1 / 3)),
        (int8._encode_, lambda: (np.empty(3, "f4"), np.empty(N, np.int8), normal(1))),
        (int8._squared_norm, lambda: (normal(1, "f4")[:3], (50 * normal(2)).astype(np.int8))),
        (
            int8._accumulate_,
            lambda: (normal(1), normal(2, "f4")[:3], (50 * normal(3)).astype(np.int8), 1 / 3),
        ),
    ],
)
def test_compiled_and_interpreted_bits_are_equal(kernel, arguments):
    compiled, interpreted = arguments(), arguments()
    assert kernel(*compiled) == kernel.py_func(*interpreted)
    for one, other in zip(compiled, interpreted, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
