"""bf16: two bytes a value, the upper half of an fp32, rounded to nearest even.

    x --round to odd--> fp32 --round to nearest even--> its upper 16 bits

Rounding to nearest twice would now and then end on the wrong neighbour; a first rounding to odd (a
value that is not exact gets an odd last bit) cannot: Boldo and Melquiond, "Emulation of a FMA and
correctly rounded sums", IEEE Trans. Computers, 2008.

Shapes: N values.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from atoll.exchange import sizes
from atoll.exchange.values import (
    LARGEST,
    add_scaled_,
    bits_of,
    leave_ as leave_,
    placed,
    refuse_unfit,
    room_for,
    squared_norm,
    values_of,
)
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, inlined, kernel, view_of

FEEDBACK = None


encoded_bytes = sizes.bf16


def encode(x_N: NDArray[np.float64], into: bytearray | None = None) -> bytearray:
    payload = room_for(encoded_bytes(len(x_N)), into)
    if not _encode_(np.frombuffer(payload, "<u2"), x_N):
        refuse_unfit(x_N)
    return payload


def encode_difference(
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
    residual_N: NDArray[np.float32] | None = None,
    *,
    into: bytearray | None = None,
) -> bytearray:
    assert residual_N is None, "this codec keeps no residual"
    payload = room_for(encoded_bytes(len(global_N)), into)
    if not _encode_difference_(np.frombuffer(payload, "<u2"), global_N, local_N):
        refuse_unfit(np.subtract(global_N, local_N, dtype=np.float64))
    return payload


def check(payload: Buffer, num_values: int) -> float:
    return squared_norm(_widened(payload, num_values))


def decode(payload: Buffer, num_values: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
    return placed(_widened(payload, num_values), into)


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    add_scaled_(total_N, _widened(payload, len(total_N)), share)


def _widened(payload: Buffer, num_values: int) -> NDArray[np.float32]:
    bits_N = values_of(payload, dtype="<u2", num_values=num_values).astype(np.uint32)
    return (bits_N << 16).view(np.float32)


@inlined
def _rounded(x: float) -> int:
    """Return the bits of x in bf16; exact steps only, so that nothing is rounded twice."""
    nearest = np.float32(x)
    to_odd = bits_of(nearest) - (abs(np.float64(nearest)) > abs(x)) | (np.float64(nearest) != x)
    return int((to_odd + 0x7FFF + (to_odd >> 16 & 1)) >> 16)


@kernel(types.boolean(buffer_of(types.uint16), view_of(types.float64)))
def _encode_(bits_N: NDArray[np.uint16], x_N: NDArray[np.float64]) -> bool:
    """Return whether all values may travel."""
    num_unfit = 0
    for i in range(len(bits_N)):
        bits_N[i] = _rounded(x_N[i])
        num_unfit += not abs(x_N[i]) <= LARGEST  # true for a NaN, too
    return num_unfit == 0


@kernel(types.boolean(buffer_of(types.uint16), view_of(types.float32), view_of(types.float32)))
def _encode_difference_(
    bits_N: NDArray[np.uint16], global_N: NDArray[np.float32], local_N: NDArray[np.float32]
) -> bool:
    """Return whether all differences, taken in double, may travel."""
    num_unfit = 0
    for i in range(len(bits_N)):
        x = np.float64(global_N[i]) - np.float64(local_N[i])
        bits_N[i] = _rounded(x)
        num_unfit += not abs(x) <= LARGEST
    return num_unfit == 0
