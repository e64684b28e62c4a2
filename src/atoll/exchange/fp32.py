"""fp32: four bytes a value, rounded to nearest even.

Shapes: N values.
"""

import numpy as np
from numpy.typing import NDArray

from atoll.exchange.values import (
    add_scaled_,
    leave_ as leave_,
    refuse_unfit,
    squared_norm,
    values_of,
)
from atoll.ids import Buffer

FEEDBACK = None


def encoded_bytes(num_values: int) -> int:
    return 4 * num_values


def encode(x_N: NDArray[np.float64]) -> bytes:
    refuse_unfit(x_N)
    return x_N.astype("<f4").tobytes()


def encode_difference(
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
    residual_N: NDArray[np.float32] | None = None,
) -> bytes:
    assert residual_N is None
    return encode(np.subtract(global_N, local_N, dtype=np.float64))


def check(payload: Buffer, num_values: int) -> float:
    return squared_norm(values_of(payload, dtype="<f4", num_values=num_values))


def decode(payload: Buffer, num_values: int) -> NDArray[np.float64]:
    return values_of(payload, dtype="<f4", num_values=num_values).astype(np.float64)


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    add_scaled_(total_N, values_of(payload, dtype="<f4", num_values=len(total_N)), share)
