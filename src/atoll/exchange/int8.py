"""Blockwise int8: one byte for each value, and one fp32 scale for each block of 128 of them.

    x --cut into blocks--> scale_k = max|x_k| / 127 --> q_k = round(x_k / scale_k)

A value comes back wrong by at most half its block's scale. On the wire: all scales, then all q.
Quotients are taken in IEEE double, so the bytes do not depend on the hardware.

Shapes: N values, K blocks of B = 128 values; the last block may be shorter.
"""

import numpy as np
from numba import types
from numpy.typing import NDArray

from atoll.errors import BadBlobError
from atoll.exchange.values import LARGEST, check_size, refuse_unfit
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, kernel, view_of

BLOCK = 128
LEVELS = 127  # -128 stays unused, so that encode(-x) is exactly -encode(x)
TINY = float(np.finfo(np.float32).tiny)  # no scale is less, so each is safe to divide by
LARGEST_SCALE = float(np.float32(LARGEST / LEVELS))


def encoded_bytes(num_values: int) -> int:
    return 4 * _num_blocks(num_values) + num_values


def encode(x_N: NDArray[np.float64]) -> bytes:
    refuse_unfit(x_N)
    scale_K = np.empty(_num_blocks(len(x_N)), np.float32)
    q_N = np.empty(len(x_N), np.int8)
    _encode_(scale_K, q_N, x_N)
    return scale_K.astype("<f4", copy=False).tobytes() + q_N.tobytes()


def check(payload: Buffer, num_values: int) -> float:
    scale_K, q_N = _parts(payload, num_values)
    if not np.all((scale_K >= TINY) & (scale_K <= LARGEST_SCALE)):  # false for a NaN, too
        raise BadBlobError("an encoded slice has a scale that is no scale")
    if np.any(q_N < -LEVELS):
        raise BadBlobError("an encoded slice has a level that is no level")
    return _squared_norm(scale_K, q_N)


def decode(payload: Buffer, num_values: int) -> NDArray[np.float64]:
    x_N = np.zeros(num_values)
    accumulate_(x_N, payload, share=1.0)
    return x_N


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    scale_K, q_N = _parts(payload, len(total_N))
    _accumulate_(total_N, scale_K, q_N, share)


def _num_blocks(num_values: int) -> int:
    return -(-num_values // BLOCK)


def _parts(payload: Buffer, num_values: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    check_size(payload, expected=encoded_bytes(num_values))
    num_blocks = _num_blocks(num_values)
    scale_K = np.frombuffer(payload, dtype="<f4", count=num_blocks)
    return scale_K, np.frombuffer(payload, dtype=np.int8, offset=4 * num_blocks)


@kernel(types.void(buffer_of(types.float32), buffer_of(types.int8), view_of(types.float64)))
def _encode_(scale_K: NDArray[np.float32], q_N: NDArray[np.int8], x_N: NDArray[np.float64]) -> None:
    for k in range(len(scale_K)):
        start, stop = k * BLOCK, min((k + 1) * BLOCK, len(x_N))
        largest = 0.0
        for i in range(start, stop):
            largest = max(largest, abs(x_N[i]))
        scale = np.float32(max(largest / LEVELS, TINY))
        scale_K[k] = scale
        for i in range(start, stop):
            q_N[i] = np.int8(np.rint(x_N[i] / scale))


@kernel(types.float64(view_of(types.float32), view_of(types.int8)))
def _squared_norm(scale_K: NDArray[np.float32], q_N: NDArray[np.int8]) -> float:
    total = 0.0
    for k in range(len(scale_K)):
        squares = 0  # of whole numbers: exact
        for i in range(k * BLOCK, min((k + 1) * BLOCK, len(q_N))):
            squares += int(q_N[i]) * int(q_N[i])
        total += squares * (np.float64(scale_K[k]) * np.float64(scale_K[k]))
    return total


@kernel(
    types.void(buffer_of(types.float64), view_of(types.float32), view_of(types.int8), types.float64)
)
def _accumulate_(
    total_N: NDArray[np.float64], scale_K: NDArray[np.float32], q_N: NDArray[np.int8], share: float
) -> None:
    for k in range(len(scale_K)):
        scale = np.float64(scale_K[k])
        for i in range(k * BLOCK, min((k + 1) * BLOCK, len(q_N))):
            total_N[i] += share * (scale * q_N[i])
