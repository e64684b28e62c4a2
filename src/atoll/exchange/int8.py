"""Blockwise int8: one byte for each value, and one fp32 scale for each block of 128 of them.

    x --cut into blocks--> scale_k = max|x_k| / 127 --> q_k = round(x_k / scale_k)

A value comes back wrong by at most half its block's scale. On the wire: all scales, then all q.
Differences and quotients are taken in fp32, each rounded as IEEE says, so the bytes do not depend
on the hardware.

Shapes: N values, K blocks of B = 128 values; zeros fill the last block.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from atoll.errors import BadBlobError
from atoll.exchange import sizes
from atoll.exchange.values import (
    ABSENT,
    LARGEST,
    LARGEST_BITS,
    NO_SIGN,
    blocks_of,
    check_size,
    difference,
    float_of,
    leave_ as leave_,
    narrowed,
    refuse_unfit,
    room_for,
)
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, kernel, view_of

FEEDBACK = None
BLOCK = sizes.INT8_BLOCK
LEVELS = 127  # -128 stays unused, so that encode(-x) is exactly -encode(x)
TINY = float(np.finfo(np.float32).tiny)  # no scale is less, so each is safe to divide by
LARGEST_SCALE = float(np.float32(LARGEST / LEVELS))


encoded_bytes = sizes.int8


def encode(x_N: NDArray[np.float64], into: bytearray | None = None) -> bytearray:
    return _encoded(x_N, ABSENT, into)


def encode_difference(
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
    residual_N: NDArray[np.float32] | None = None,
    *,
    into: bytearray | None = None,
) -> bytearray:
    assert residual_N is None
    return _encoded(global_N, local_N, into)


def check(payload: Buffer, num_values: int) -> float:
    scale_K, q_N = _parts(payload, num_values)
    squares = float(_squared_norm(scale_K, blocks_of(q_N, BLOCK)))
    if squares < 0:
        raise BadBlobError("an encoded slice has a scale or a level that is none")
    return squares


def decode(payload: Buffer, num_values: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
    scale_K, q_N = _parts(payload, num_values)
    x_N = np.empty(num_values) if into is None else into
    full = num_values // BLOCK * BLOCK
    _decode_(x_N[:full].reshape(-1, BLOCK), scale_K, q_N[:full].reshape(-1, BLOCK))
    x_N[full:] = np.float64(scale_K[-1:]) * q_N[full:]
    return x_N


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    scale_K, q_N = _parts(payload, len(total_N))
    total_KB = blocks_of(total_N, BLOCK)
    _accumulate_(total_KB, scale_K, blocks_of(q_N, BLOCK), share)
    if len(total_N) % BLOCK:
        total_N[:] = total_KB.reshape(-1)[: len(total_N)]


def _parts(payload: Buffer, num_values: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    check_size(payload, expected=encoded_bytes(num_values))
    num_blocks = sizes.num_blocks(num_values, BLOCK)
    scale_K = np.frombuffer(payload, dtype="<f4", count=num_blocks)
    return scale_K, np.frombuffer(payload, dtype=np.int8, offset=4 * num_blocks)


def _encoded(x_N: NDArray[Any], local_N: NDArray[np.float32], into: bytearray | None) -> bytearray:
    payload = room_for(encoded_bytes(len(x_N)), into)
    scale_K, q_N = _parts(payload, len(x_N))
    full = len(x_N) // BLOCK
    whole, rest = slice(full * BLOCK), slice(full * BLOCK, None)  # zeros fill up the last block
    q_KB, rest_q_KB = blocks_of(q_N[whole], BLOCK), blocks_of(q_N[rest], BLOCK)
    are_fit = [
        _encode_(scale_K[a:b], q, blocks_of(x_N[part], BLOCK), blocks_of(local_N[part], BLOCK))
        for a, b, q, part in ((0, full, q_KB, whole), (full, len(scale_K), rest_q_KB, rest))
    ]
    q_N[rest] = rest_q_KB.reshape(-1)[: len(q_N[rest])]
    if not all(are_fit):
        refuse_unfit(difference(x_N, local_N) if len(local_N) else narrowed(x_N))
    return payload


@kernel(
    *(
        types.boolean(
            buffer_of(types.float32),
            buffer_of(types.int8, ndim=2),
            view_of(value, ndim=2),
            view_of(types.float32, ndim=2),
        )
        for value in (types.float32, types.float64)
    )
)
def _encode_(
    scale_K: NDArray[np.float32],
    q_KB: NDArray[np.int8],
    x_KB: NDArray[Any],
    local_KB: NDArray[np.float32],
) -> bool:
    """Encode x - local, or x if that is ABSENT; return whether all values may travel."""
    x_B = np.empty(BLOCK, np.float32)
    bits_B = x_B.view(np.int32)
    is_difference = len(local_KB) > 0
    largest_of_all = np.int32(0)
    for k in range(len(scale_K)):
        if is_difference:
            for j in range(BLOCK):
                x_B[j] = x_KB[k, j] - local_KB[k, j]
        else:
            for j in range(BLOCK):
                x_B[j] = np.float32(x_KB[k, j])
        largest = np.int32(0)
        for j in range(BLOCK):
            largest = max(largest, np.int32(bits_B[j] & NO_SIGN))
        largest_of_all = max(largest_of_all, largest)
        scale = max(float_of(int(largest)) / np.float32(LEVELS), np.float32(TINY))
        scale_K[k] = scale
        for j in range(BLOCK):
            q_KB[k, j] = np.int8(np.rint(x_B[j] / scale))
    return bool(largest_of_all <= LARGEST_BITS)


@kernel(
    *(
        types.void(buffer_of(value, ndim=2), view_of(types.float32), view_of(types.int8, ndim=2))
        for value in (types.float32, types.float64)
    )
)
def _decode_(x_KB: NDArray[Any], scale_K: NDArray[np.float32], q_KB: NDArray[np.int8]) -> None:
    for k in range(len(q_KB)):
        for j in range(BLOCK):
            x_KB[k, j] = np.float64(scale_K[k]) * np.float64(np.float32(q_KB[k, j]))


@kernel(types.float64(view_of(types.float32), view_of(types.int8, ndim=2)))
def _squared_norm(scale_K: NDArray[np.float32], q_KB: NDArray[np.int8]) -> float:
    """Return it, or -1 if some scale or level is none."""
    sound = True
    total = 0.0
    for k in range(len(scale_K)):
        sound = sound and TINY <= scale_K[k] <= LARGEST_SCALE  # false for a NaN, too
        squares = np.int32(0)  # of whole numbers: exact
        for j in range(BLOCK):
            squares = np.int32(squares + np.int32(q_KB[k, j]) * np.int32(q_KB[k, j]))
        total += squares * (np.float64(scale_K[k]) * np.float64(scale_K[k]))
    lowest = np.int8(0)
    for q in q_KB.reshape(-1):
        lowest = min(lowest, q)
    return total if sound and lowest >= -LEVELS else -1.0


@kernel(
    types.void(
        buffer_of(types.float64, ndim=2),
        view_of(types.float32),
        view_of(types.int8, ndim=2),
        types.float64,
    )
)
def _accumulate_(
    total_KB: NDArray[np.float64],
    scale_K: NDArray[np.float32],
    q_KB: NDArray[np.int8],
    share: float,
) -> None:
    for k in range(len(scale_K)):
        scale = np.float64(scale_K[k])
        for j in range(BLOCK):
            total_KB[k, j] += share * (scale * q_KB[k, j])
