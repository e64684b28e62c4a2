"""fp32: four bytes a value, rounded to nearest even.

Shapes: N values.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.exchange import sizes
from atoll.exchange.values import (
    add_scaled_,
    leave_ as leave_,
    placed,
    refuse_unfit,
    room_for,
    squared_norm,
    values_of,
)
from atoll.ids import Buffer

FEEDBACK = None


encoded_bytes = sizes.fp32


def encode(x_N: NDArray[np.float64], into: bytearray | None = None) -> bytearray:
    refuse_unfit(x_N)
    payload = room_for(encoded_bytes(len(x_N)), into)
    np.frombuffer(payload, "<f4")[:] = x_N
    return payload


def encode_difference(
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
    residual_N: NDArray[np.float32] | None = None,
    *,
    into: bytearray | None = None,
) -> bytearray:
    assert residual_N is None
    return encode(np.subtract(global_N, local_N, dtype=np.float64), into)


def check(payload: Buffer, num_values: int) -> float:
    return squared_norm(values_of(payload, dtype="<f4", num_values=num_values))


def decode(payload: Buffer, num_values: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
    return placed(values_of(payload, dtype="<f4", num_values=num_values), into)


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    add_scaled_(total_N, values_of(payload, dtype="<f4", num_values=len(total_N)), share)
