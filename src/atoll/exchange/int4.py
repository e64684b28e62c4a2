"""Blockwise int4: four bits for each value, and one scale of 16 bits for each block of 32 of them.

    x --cut into blocks--> scale_k = max|x_k|, rounded up --> the nearest of 15 levels * scale_k

The levels lie closer together near zero, where most values are. They are symmetric, so that the
code of -x stands for exactly minus what that of x does. On the wire: all scales (the upper 16 bits
of an fp32 after its sign), then half a block in the lower and half in the upper bits of 16 bytes
each. A level is a whole number of 128ths: its product with a scale is exact in fp32, so that the
residual is fl32(x - decoded). The difference is taken in fp32.

Shapes: N values, K blocks of B = 32 values; zeros fill the last block.
"""

from collections.abc import Sequence
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
    narrowed,
    placed,
    refuse_unfit,
    room_for,
    zeros,
)
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, inlined, kernel, view_of

FEEDBACK = 1.0
BLOCK = sizes.INT4_BLOCK
HALF = BLOCK // 2
ROWS = 16  # blocks that are encoded together: loops of 32 are too short for a compiler to vectorise
GROUP = ROWS * BLOCK
# Found by descent: the least squared error in blocks of 32, four parts normally distributed values
# and one part Student's t with 2 degrees of freedom.
LEVELS = np.array([0, 12, 26, 41, 57, 75, 98, 128], np.float32) / np.float32(128)
T1, T2, T3, T4, T5, T6, T7 = (LEVELS[1:] + LEVELS[:-1]) / 2
SIGN = 8  # the bit of a negative level; SIGN alone, minus zero, stays unused
SIGNED_LEVELS = np.concatenate([LEVELS, -LEVELS])
LEAST_SCALE = int(np.finfo(np.float32).tiny.view(np.uint32)) >> 15  # safe to divide by
LARGEST_SCALE = int(np.float32(LARGEST).view(np.uint32)) >> 15


encoded_bytes = sizes.int4


def encode(x_N: NDArray[np.float64], into: bytearray | None = None) -> bytearray:
    return _encoded((narrowed(x_N), ABSENT, ABSENT), into)


def encode_difference(
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
    residual_N: NDArray[np.float32] | None = None,
    *,
    into: bytearray | None = None,
) -> bytearray:
    residual_N = ABSENT if residual_N is None else residual_N
    return _encoded((global_N, local_N, residual_N), into)


def leave_(
    residual_N: NDArray[np.float32],
    payload: Buffer,
    *,
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
) -> None:
    scale_K, code_KH = _parts(payload, len(residual_N))
    residual_KB = blocks_of(residual_N, BLOCK)
    _leave_(residual_KB, scale_K, code_KH, blocks_of(global_N, BLOCK), blocks_of(local_N, BLOCK))
    if len(residual_N) % BLOCK:
        residual_N[:] = residual_KB.reshape(-1)[: len(residual_N)]


def check(payload: Buffer, num_values: int) -> float:
    scale_K, code_KH = _parts(payload, num_values)
    if not np.all((scale_K >= LEAST_SCALE) & (scale_K <= LARGEST_SCALE)):
        raise BadBlobError("an encoded slice has a scale that is no scale")
    squares = float(_squared_norm(scale_K, code_KH, num_values))
    if squares < 0:
        raise BadBlobError("an encoded slice has a level that is no level")
    return squares


def decode(payload: Buffer, num_values: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
    x_N = zeros(num_values, into)
    accumulate_(x_N, payload, share=1.0)
    return placed(x_N, into)


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    scale_K, code_KH = _parts(payload, len(total_N))
    total_KB = blocks_of(total_N, BLOCK)
    _accumulate_(total_KB, scale_K, code_KH, share)
    if len(total_N) % BLOCK:
        total_N[:] = total_KB.reshape(-1)[: len(total_N)]


def _parts(payload: Buffer, num_values: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    check_size(payload, expected=encoded_bytes(num_values))
    num_blocks = sizes.num_blocks(num_values, BLOCK)
    scale_K = np.frombuffer(payload, dtype="<u2", count=num_blocks)
    code_KH = np.frombuffer(payload, dtype=np.uint8, offset=2 * num_blocks).reshape(-1, HALF)
    return scale_K, code_KH


def _encoded(made_of: Sequence[NDArray[np.float32]], into: bytearray | None) -> bytearray:
    """Encode what these are: x, what is subtracted, and the residual; each but x may be ABSENT."""
    x_N, local_N, residual_N = made_of
    x_SG, local_SG, residual_SG = (blocks_of(part_N, GROUP) for part_N in made_of)
    scale_K = np.empty(len(x_SG) * ROWS, "<u2")
    code_KH = np.empty((len(scale_K), HALF), np.uint8)
    if not _encode_(scale_K, code_KH, x_SG, local_SG, residual_SG):
        if len(local_N):
            residual = residual_N if len(residual_N) else None
            x_N = difference(x_N, local_N, residual, feedback=FEEDBACK)
        refuse_unfit(x_N)
    num_blocks, payload = sizes.num_blocks(len(x_N), BLOCK), room_for(encoded_bytes(len(x_N)), into)
    payload_scale_K, payload_code_KH = _parts(payload, len(x_N))
    payload_scale_K[:] = scale_K[:num_blocks]
    payload_code_KH[:] = code_KH[:num_blocks]
    return payload


@inlined
def _scale(bits: int) -> np.float32:
    return float_of(int(bits) << 15)


@inlined
def _quantise_(
    scale_K: NDArray[np.uint16],
    code_KH: NDArray[np.uint8],
    first: int,
    x_RB: NDArray[np.float32],
    bits_RB: NDArray[np.int32],
) -> int:
    """Write a group as blocks `first` and on, and return the bits of its largest size."""
    largest_of_all = np.int32(0)
    for r in range(ROWS):
        largest = np.int32(0)
        for j in range(BLOCK):
            largest = max(largest, np.int32(bits_RB[r, j] & NO_SIGN))
        largest_of_all = max(largest_of_all, largest)
        bits = max(int(largest + 0x7FFF) >> 15, LEAST_SCALE)
        scale_K[first + r] = bits
        inverse = np.float32(1) / _scale(bits)
        for j in range(BLOCK):
            x_RB[r, j] *= inverse
    code_RB = np.empty((ROWS, BLOCK), np.uint8)
    x_G, code_G = x_RB.reshape(-1), code_RB.reshape(-1)
    for i in range(GROUP):
        code_G[i] = _code(x_G[i])
    for r in range(ROWS):
        for j in range(HALF):
            code_KH[first + r, j] = code_RB[r, j] | code_RB[r, j + HALF] << 4
    return int(largest_of_all)


@inlined
def _code(x: np.float32) -> int:
    size = abs(x)
    index = (size > T1) + (size > T2) + (size > T3) + (size > T4)
    index += (size > T5) + (size > T6) + (size > T7)
    return int(index + SIGN * (x < -T1))


@kernel(
    types.boolean(
        buffer_of(types.uint16),
        buffer_of(types.uint8, ndim=2),
        view_of(types.float32, ndim=2),
        view_of(types.float32, ndim=2),
        view_of(types.float32, ndim=2),
    )
)
def _encode_(
    scale_K: NDArray[np.uint16],
    code_KH: NDArray[np.uint8],
    x_SG: NDArray[np.float32],
    local_SG: NDArray[np.float32],
    residual_SG: NDArray[np.float32],
) -> bool:
    """Encode x - local + residual, of which the latter two may be ABSENT.

    Return whether all values may travel.
    """
    x_RB = np.empty((ROWS, BLOCK), np.float32)
    x_G, bits_RB = x_RB.reshape(-1), x_RB.view(np.int32)
    largest = 0
    for s in range(len(x_SG)):
        for i in range(GROUP):
            x_G[i] = x_SG[s, i]
        if len(local_SG):
            for i in range(GROUP):
                x_G[i] -= local_SG[s, i]
        if len(residual_SG):
            for i in range(GROUP):
                x_G[i] += residual_SG[s, i]
        largest = max(largest, _quantise_(scale_K, code_KH, s * ROWS, x_RB, bits_RB))
    return largest <= LARGEST_BITS


@kernel(
    types.void(
        buffer_of(types.float32, ndim=2),
        view_of(types.uint16),
        view_of(types.uint8, ndim=2),
        view_of(types.float32, ndim=2),
        view_of(types.float32, ndim=2),
    )
)
def _leave_(
    residual_KB: NDArray[np.float32],
    scale_K: NDArray[np.uint16],
    code_KH: NDArray[np.uint8],
    global_KB: NDArray[np.float32],
    local_KB: NDArray[np.float32],
) -> None:
    value_L = np.empty(len(SIGNED_LEVELS), np.float32)
    for k in range(len(scale_K)):
        scale = _scale(scale_K[k])
        for level in range(len(SIGNED_LEVELS)):
            value_L[level] = SIGNED_LEVELS[level] * scale
        for j in range(HALF):
            low, high = code_KH[k, j] & 15, code_KH[k, j] >> 4
            x = (global_KB[k, j] - local_KB[k, j]) + residual_KB[k, j]
            residual_KB[k, j] = x - value_L[low]
            h = j + HALF
            x = (global_KB[k, h] - local_KB[k, h]) + residual_KB[k, h]
            residual_KB[k, h] = x - value_L[high]


@kernel(types.float64(view_of(types.uint16), view_of(types.uint8, ndim=2), types.int64))
def _squared_norm(
    scale_K: NDArray[np.uint16], code_KH: NDArray[np.uint8], num_values: int
) -> float:
    """Return it, or -1 if some level is none, or one beyond the last value is not zero."""
    total = 0.0
    sound = True
    for k in range(len(scale_K)):
        squares = 0.0  # of multiples of 1/128: exact
        for j in range(HALF):
            low, high = code_KH[k, j] & 15, code_KH[k, j] >> 4
            sound &= (low != SIGN) & (high != SIGN)
            squares += np.float64(SIGNED_LEVELS[low]) * np.float64(SIGNED_LEVELS[low])
            squares += np.float64(SIGNED_LEVELS[high]) * np.float64(SIGNED_LEVELS[high])
        scale = np.float64(_scale(scale_K[k]))
        total += squares * (scale * scale)
    for i in range(num_values, len(scale_K) * BLOCK):
        k, j = i // BLOCK, i % BLOCK
        sound &= (code_KH[k, j % HALF] >> 4 * (j // HALF) & 15) == 0
    return total if sound else -1.0


@kernel(
    types.void(
        buffer_of(types.float64, ndim=2),
        view_of(types.uint16),
        view_of(types.uint8, ndim=2),
        types.float64,
    )
)
def _accumulate_(
    total_KB: NDArray[np.float64],
    scale_K: NDArray[np.uint16],
    code_KH: NDArray[np.uint8],
    share: float,
) -> None:
    for k in range(len(scale_K)):
        scale = np.float64(_scale(scale_K[k]))
        for j in range(HALF):
            low, high = code_KH[k, j] & 15, code_KH[k, j] >> 4
            total_KB[k, j] += share * (scale * np.float64(SIGNED_LEVELS[low]))
            total_KB[k, j + HALF] += share * (scale * np.float64(SIGNED_LEVELS[high]))
