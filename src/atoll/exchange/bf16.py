"""bf16: two bytes a value, the upper half of an fp32, rounded to nearest even.

    x --round to odd--> fp32 --round to nearest even--> its upper 16 bits

Rounding to nearest twice would now and then end on the wrong neighbour; a first rounding to odd (a
value that is not exact gets an odd last bit) cannot: Boldo and Melquiond, "Emulation of a FMA and
correctly rounded sums", IEEE Trans. Computers, 2008.

Shapes: N values.
"""

import numpy as np
from numpy.typing import NDArray

from atoll.exchange.values import add_scaled_, refuse_unfit, squared_norm, values_of
from atoll.ids import Buffer


def encoded_bytes(num_values: int) -> int:
    return 2 * num_values


def encode(x_N: NDArray[np.float64]) -> bytes:
    refuse_unfit(x_N)
    nearest_N = x_N.astype(np.float32)
    bits_N = nearest_N.view(np.uint32)
    bits_N -= np.abs(nearest_N) > np.abs(x_N)
    bits_N |= nearest_N != x_N
    bits_N += 0x7FFF + (bits_N >> 16 & 1)
    return (bits_N >> 16).astype("<u2").tobytes()


def check(payload: Buffer, num_values: int) -> float:
    return squared_norm(_widened(payload, num_values))


def decode(payload: Buffer, num_values: int) -> NDArray[np.float64]:
    return _widened(payload, num_values).astype(np.float64)


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    add_scaled_(total_N, _widened(payload, len(total_N)), share)


def _widened(payload: Buffer, num_values: int) -> NDArray[np.float32]:
    bits_N = values_of(payload, dtype="<u2", num_values=num_values).astype(np.uint32)
    return (bits_N << 16).view(np.float32)
