"""Each kernel, compiled, gives the bits that its lines give in plain Python."""

import numpy as np
import pytest

from atoll.exchange import int4, int8, values
from atoll.outer import nesterov

N = 300


def normal(seed, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(N).astype(dtype)


def blocks(seed, dtype="f4", width=128):
    return np.random.default_rng(seed).standard_normal((256 // width or 1, width)).astype(dtype)


def levels(seed):
    return np.random.default_rng(seed).integers(-127, 128, (2, 128)).astype(np.int8)


def codes(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 16)).astype(np.uint8)


def scales(count):
    return np.arange(120, 120 + count, dtype="u2") << 8


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (nesterov._outer_step_, lambda: (normal(1, "f4"), normal(2, "f4"), normal(3), 0.7, 0.9)),
        (values._num_unfit, lambda: (np.append(normal(1), [np.nan, 1e300]),)),
        (values._squared_norm, lambda: (normal(1, "f4"),)),
        (values.add_scaled_, lambda: (normal(1), normal(2), 1 / 3)),
        (int8._encode_, lambda: (np.empty(2, "f4"), levels(0), blocks(1), blocks(2))),
        (int8._squared_norm, lambda: (abs(normal(1, "f4")[:2]), levels(2))),
        (int8._accumulate_, lambda: (blocks(1, "f8"), normal(2, "f4")[:2], levels(3), 1 / 3)),
        (
            int4._encode_,
            lambda: (np.empty(16, "u2"), codes(0), *[blocks(k, "f4", 512) for k in (1, 2, 3)]),
        ),
        (
            int4._leave_,
            lambda: (
                blocks(1, "f4", 32),
                scales(8),
                codes(2),
                *[blocks(k, "f4", 32) for k in (3, 4)],
            ),
        ),
        (int4._squared_norm, lambda: (scales(8), codes(1) & 0x77, 256)),
        (int4._accumulate_, lambda: (blocks(1, "f8", 32), scales(8), codes(2), 1 / 3)),
    ],
)
def test_compiled_and_interpreted_bits_are_equal(kernel, arguments):
    compiled, interpreted = arguments(), arguments()
    assert kernel(*compiled) == kernel.py_func(*interpreted)
    for one, other in zip(compiled, interpreted, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
