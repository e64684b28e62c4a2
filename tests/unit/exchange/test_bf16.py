import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import BadBlobError
from atoll.exchange import bf16

ALL_BITS = np.arange(2**16, dtype="<u2")


def neighbours(x):
    """Return the two bf16 values around a positive x, found among all there are."""
    values = bf16.decode(ALL_BITS[:0x7F80].tobytes(), 0x7F80)
    above = int(np.searchsorted(values, x))
    return values, above


@settings(deadline=None)
@given(st.floats(2.0**-140, 2.0**125))
def test_the_nearest_value_is_taken_and_the_even_one_of_two(x):
    values, above = neighbours(x)
    to_below, to_above = x - values[above - 1], values[above] - x
    if to_below == to_above:
        expected = above - above % 2
    else:
        expected = above if to_above < to_below else above - 1
    assert bf16.encode(np.array([x])) == ALL_BITS[expected].tobytes()


def test_a_value_beside_a_tie_is_not_rounded_twice():
    # To fp32 each would round to the tie itself, and from there to its even neighbour.
    x_N = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-7 + 2.0**-8 - 2.0**-40])
    assert (bf16.decode(bf16.encode(x_N), 2) == 1 + 2.0**-7).all()


def test_what_is_a_bf16_already_comes_back_as_it_was():
    bits = ALL_BITS[(ALL_BITS & 0x7FFF) <= 0x7E80]  # up to 2.0**126
    assert bf16.encode(bf16.decode(bits.tobytes(), len(bits))) == bits.tobytes()


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F7F])
def test_infinity_nan_and_too_large_values_are_refused(bits):
    with pytest.raises(BadBlobError, match="NaN or too large"):
        bf16.check(np.array([0, bits], "<u2").tobytes(), 2)
