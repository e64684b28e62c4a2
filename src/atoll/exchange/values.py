"""What all codecs agree on: which values may travel, and how decoded ones are measured and added.

Every value that travels is finite and at most LARGEST in size, so that no sum of squares, no mean
and no scale of a codec can become infinite.

Shapes: N values.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from atoll.errors import BadBlobError, BadUpdateError
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, kernel, view_of

LARGEST = (
    2.0**126
)  # beyond it, 127 levels of a rounded scale, or the rounding to bf16, may overflow


def refuse_unfit(x_N: NDArray[np.float64]) -> None:
    """Let a vector of our own pass only if it may travel.

    Raises:
        BadUpdateError: some value is a NaN or too large, and the mean would hand it to all.
    """
    num_unfit = int(_num_unfit(x_N))
    if num_unfit:
        raise BadUpdateError(
            f"{num_unfit} of {len(x_N)} values of the pseudo-gradient are NaN or too large",
            hint="the training of this peer has diverged: look at its loss and learning rate",
        )


def values_of(payload: Buffer, *, dtype: str, num_values: int) -> NDArray[Any]:
    """Return a view of a payload that is nothing but `num_values` values of `dtype`.

    Raises:
        BadBlobError: it has another size.
    """
    check_size(payload, expected=num_values * np.dtype(dtype).itemsize)
    return np.frombuffer(payload, dtype=dtype)


def check_size(payload: Buffer, *, expected: int) -> None:
    """Let a payload pass only if it has the right size, and raise BadBlobError otherwise."""
    num_bytes = memoryview(payload).nbytes
    if num_bytes != expected:
        raise BadBlobError(f"an encoded slice has {num_bytes} bytes instead of {expected}")


def squared_norm(x_N: NDArray[np.float32] | NDArray[np.float64]) -> float:
    """Return the squared L2 norm of a decoded vector.

    Raises:
        BadBlobError: some value is a NaN or too large.
    """
    if _num_unfit(x_N):
        raise BadBlobError("an encoded slice decodes to values that are NaN or too large")
    return _squared_norm(x_N)


@kernel(types.int64(view_of(types.float64)), types.int64(view_of(types.float32)))
def _num_unfit(x_N: NDArray[Any]) -> int:
    num_unfit = 0
    for i in range(len(x_N)):
        num_unfit += not abs(x_N[i]) <= LARGEST  # true for a NaN, too
    return num_unfit


@kernel(types.float64(view_of(types.float64)), types.float64(view_of(types.float32)))
def _squared_norm(x_N: NDArray[Any]) -> float:
    total = 0.0
    for i in range(len(x_N)):
        total += np.float64(x_N[i]) * np.float64(x_N[i])
    return total


@kernel(
    types.void(buffer_of(types.float64), view_of(types.float64), types.float64),
    types.void(buffer_of(types.float64), view_of(types.float32), types.float64),
)
def add_scaled_(total_N: NDArray[np.float64], x_N: NDArray[Any], share: float) -> None:
    """Add `share * x_N` to `total_N`, in place, in IEEE double."""
    for i in range(len(total_N)):
        total_N[i] += share * np.float64(x_N[i])
