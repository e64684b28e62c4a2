"""What all codecs agree on: which values may travel, and how decoded ones are measured and added.

Every value that travels is finite and at most LARGEST in size, so that no sum of squares, no mean
and no scale of a codec can become infinite.

Shapes: N values, K blocks of B values.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from atoll.errors import BadBlobError, BadUpdateError
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, inlined, kernel, view_of

# Beyond it, 127 levels of a rounded scale, or the rounding to bf16, may overflow.
LARGEST = 2.0**126
LARGEST_BITS = int(np.float32(LARGEST).view(np.int32))  # the bits of positive floats are in order
NO_SIGN = 0x7FFFFFFF  # the bits of an fp32 but for its sign
LANES = 128  # sums side by side: each on its own, so that a compiler may add them in parallel
ABSENT: NDArray[np.float32] = np.empty(0, np.float32)  # no values to subtract, no residual


def leave_(
    residual_N: NDArray[np.float32],
    payload: Buffer,
    *,
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
) -> None:
    """Fail: the codecs that share this one keep no residual."""
    raise AssertionError(f"no residual for {(residual_N, payload, global_N, local_N)}")


# --- our own values ------------------------------------------------------------------------------


def refuse_unfit(x_N: NDArray[Any]) -> None:
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


def difference(
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
    residual_N: NDArray[np.float32] | None = None,
    *,
    feedback: float | None = None,
) -> NDArray[np.float32]:
    """Return global - local (+ feedback * residual), each operation rounded to fp32.

    What is too large becomes infinite, and is refused later.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        x_N = global_N - local_N
        if residual_N is not None:
            assert feedback is not None, "this codec keeps no residual"
            x_N += np.float32(feedback) * residual_N
    return x_N


def narrowed(x_N: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the values in fp32; what is too large becomes infinite, and is refused later."""
    with np.errstate(over="ignore"):
        return x_N.astype(np.float32)


# --- blocks --------------------------------------------------------------------------------------


def blocks_of(x_N: NDArray[Any], block: int) -> NDArray[Any]:
    """Return the values as rows of `block`: a view, or a copy where zeros fill the last row."""
    missing = -len(x_N) % block
    if missing:
        x_N = np.concatenate([x_N, np.zeros(missing, x_N.dtype)])
    return x_N.reshape(-1, block)


@inlined
def float_of(bits: int) -> np.float32:
    """Return the fp32 value that has these bits."""
    return np.uint32(bits).view(np.float32)


@inlined
def bits_of(x: np.float32) -> int:
    """Return the bits of an fp32 value."""
    return int(np.float32(x).view(np.uint32))


# --- where things go ------------------------------------------------------------------------------


def room_for(num_bytes: int, into: bytearray | None) -> bytearray:
    """Return where a payload goes: a buffer used again is faster than a new one."""
    if into is None:
        return bytearray(num_bytes)
    assert len(into) == num_bytes, f"a payload of {num_bytes} bytes, and room for {len(into)}"
    return into


def zeros(num_values: int, into: NDArray[Any] | None) -> NDArray[np.float64]:
    """Return where values can be added up, `into` itself if it is in double."""
    if into is None or into.dtype != np.float64:
        return np.zeros(num_values)
    into.fill(0)
    return into


def placed(x_N: NDArray[Any], into: NDArray[Any] | None) -> NDArray[Any]:
    """Return the values in double; or in `into`, rounded to its type."""
    if into is None:
        return x_N.astype(np.float64, copy=False)
    if into is not x_N:
        np.copyto(into, x_N, casting="same_kind")
    return into


# --- payloads ------------------------------------------------------------------------------------


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
    """Return the sum of LANES sums, each of every LANES-th square: fast, in a fixed order."""
    sum_L = np.zeros(LANES)
    num_rows = len(x_N) // LANES
    x_RL = x_N[: num_rows * LANES].reshape(num_rows, LANES)
    for r in range(num_rows):
        for lane in range(LANES):
            sum_L[lane] += np.float64(x_RL[r, lane]) * np.float64(x_RL[r, lane])
    for i in range(num_rows * LANES, len(x_N)):
        sum_L[i % LANES] += np.float64(x_N[i]) * np.float64(x_N[i])
    total = 0.0
    for lane in range(LANES):
        total += sum_L[lane]
    return total


@kernel(
    types.void(buffer_of(types.float64), view_of(types.float64), types.float64),
    types.void(buffer_of(types.float64), view_of(types.float32), types.float64),
)
def add_scaled_(total_N: NDArray[np.float64], x_N: NDArray[Any], share: float) -> None:
    """Add `share * x_N` to `total_N`, in place, in IEEE double."""
    for i in range(len(total_N)):
        total_N[i] += share * np.float64(x_N[i])
