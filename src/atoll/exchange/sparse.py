"""Sparse: of each chunk of 4096 values the 64 largest, each as a place and two bits.

    x --cut into chunks--> the largest 64 --> place (12 bits), sign, and one of two magnitudes

The two magnitudes of a chunk are the means of its smaller and its larger kept values, on both sides
of their common mean. A full chunk takes 120 bytes, 0.23 bits for each value; a shorter last one of
n values keeps ceil(n / 64). What is dropped comes back: SparseLoCo, arXiv 2508.15706, which also
found the decay of 0.95. On the wire: the magnitudes of all chunks (the smaller first), then all
places, then all signs (upper bit) and choices (lower bit, 1: the larger). The difference is taken
in fp32, and so is the residual: fl32(x - decoded).

Shapes: N values, K chunks of C = 4096 values, E = 64 entries of a chunk.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from atoll.errors import BadBlobError
from atoll.exchange import sizes
from atoll.exchange.topk import are_places, index_at, pack_, select_
from atoll.exchange.values import (
    LARGEST,
    LARGEST_BITS,
    NO_SIGN,
    blocks_of,
    check_size,
    difference,
    narrowed,
    placed,
    refuse_unfit,
    room_for,
    zeros,
)
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, inlined, kernel, view_of

FEEDBACK = 0.95
CHUNK = sizes.CHUNK
VALUES_PER_ENTRY = sizes.SPARSE_VALUES
ENTRIES = CHUNK // VALUES_PER_ENTRY
PLACE_BYTES = ENTRIES * 3 // 2
CODE_BYTES = ENTRIES // 4

Parts = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]


encoded_bytes = sizes.sparse


def encode(x_N: NDArray[np.float64], into: bytearray | None = None) -> bytearray:
    return _encoded(narrowed(x_N), into)


def encode_difference(
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
    residual_N: NDArray[np.float32] | None = None,
    *,
    into: bytearray | None = None,
) -> bytearray:
    return _encoded(difference(global_N, local_N, residual_N, feedback=FEEDBACK), into)


def leave_(
    residual_N: NDArray[np.float32],
    payload: Buffer,
    *,
    global_N: NDArray[np.float32],
    local_N: NDArray[np.float32],
) -> None:
    parts = _parts(np.frombuffer(payload, np.uint8), len(residual_N))
    residual_N[:] = difference(global_N, local_N, residual_N, feedback=FEEDBACK)
    _subtract_(residual_N, *parts)


def check(payload: Buffer, num_values: int) -> float:
    magnitude_2K, place_P, code_P = _parts(np.frombuffer(payload, np.uint8), num_values)
    if not np.all((magnitude_2K >= 0) & (magnitude_2K <= LARGEST)):  # false for a NaN, too
        raise BadBlobError("an encoded slice has a magnitude that is none")
    squares = float(_squared_norm(magnitude_2K, place_P, code_P, num_values))
    if squares < 0:
        raise BadBlobError("an encoded slice has places that do not ascend, or lie beyond its end")
    return squares


def decode(payload: Buffer, num_values: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
    x_N = zeros(num_values, into)
    accumulate_(x_N, payload, share=1.0)
    return placed(x_N, into)


def accumulate_(total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
    _accumulate_(total_N, *_parts(np.frombuffer(payload, np.uint8), len(total_N)), share)


def _parts(payload: NDArray[np.uint8], num_values: int) -> Parts:
    """Return views of the magnitudes (2 for each chunk), the places and the codes."""
    check_size(payload.data, expected=encoded_bytes(num_values))
    magnitude_bytes, place_bytes, _ = sizes.sparse_parts(num_values)
    rest = payload[magnitude_bytes:]
    return payload[:magnitude_bytes].view("<f4"), rest[:place_bytes], rest[place_bytes:]


def _encoded(x_N: NDArray[np.float32], into: bytearray | None) -> bytearray:
    payload = room_for(encoded_bytes(len(x_N)), into)
    bytes_P = np.frombuffer(payload, np.uint8)
    bytes_P.fill(0)  # bits are put into it
    if not _encode_(*_parts(bytes_P, len(x_N)), blocks_of(x_N, CHUNK), len(x_N)):
        refuse_unfit(x_N)
    return payload


@inlined
def _num_entries(num_values: int, k: int) -> int:
    return (min(CHUNK, num_values - k * CHUNK) + VALUES_PER_ENTRY - 1) // VALUES_PER_ENTRY


@inlined
def _mean(size_E: NDArray[np.float32], above: float, up_to: float) -> np.float32:
    """Return the mean of those above one bound and up to another one, 0 if there are none."""
    total, count = 0.0, 0
    for size in size_E:
        if above < size <= up_to:
            total += np.float64(size)
            count += 1
    return np.float32(total / max(count, 1))


@inlined
def _quantise_(
    magnitude_2: NDArray[np.float32],
    code_P: NDArray[np.uint8],
    x_C: NDArray[np.float32],
    index_E: NDArray[np.uint16],
) -> None:
    size_E = np.empty(len(index_E), np.float32)
    for e in range(len(index_E)):
        size_E[e] = abs(x_C[index_E[e]])
    # With a zero among them, all zeros stay zero, and the others have one magnitude.
    border = np.float64(0)
    if size_E.min() > 0:
        border = np.float64(_mean(size_E, -1.0, np.inf))
    magnitude_2[0] = _mean(size_E, -1.0, border)
    magnitude_2[1] = _mean(size_E, border, np.inf)
    for e in range(len(index_E)):
        code = (size_E[e] > border) + 2 * (x_C[index_E[e]] < 0)
        code_P[e // 4] |= code << 2 * (e % 4)


@kernel(
    types.boolean(
        buffer_of(types.float32),
        buffer_of(types.uint8),
        buffer_of(types.uint8),
        view_of(types.float32, ndim=2),
        types.int64,
    )
)
def _encode_(
    magnitude_2K: NDArray[np.float32],
    place_P: NDArray[np.uint8],
    code_P: NDArray[np.uint8],
    x_KC: NDArray[np.float32],
    num_values: int,
) -> bool:
    size_C = np.empty(CHUNK, np.int32)
    bits_KC = x_KC.view(np.int32)
    index_E = np.empty(ENTRIES, np.uint16)
    largest = np.int32(0)
    for k in range(len(x_KC)):
        for i in range(CHUNK):
            size_C[i] = bits_KC[k, i] & NO_SIGN
        for i in range(CHUNK):
            largest = max(largest, size_C[i])
        length, entries = min(CHUNK, num_values - k * CHUNK), _num_entries(num_values, k)
        select_(index_E[:entries], size_C[:length])
        pack_(place_P[k * PLACE_BYTES :], index_E[:entries])
        _quantise_(
            magnitude_2K[2 * k : 2 * k + 2], code_P[k * CODE_BYTES :], x_KC[k], index_E[:entries]
        )
    return bool(largest <= LARGEST_BITS)


@inlined
def _value(magnitude_2K: NDArray[np.float32], code_P: NDArray[np.uint8], k: int, e: int) -> float:
    code = code_P[k * CODE_BYTES + e // 4] >> 2 * (e % 4)
    size = np.float64(magnitude_2K[2 * k + (code & 1)])
    return -size if code & 2 else size


@kernel(
    types.float64(view_of(types.float32), view_of(types.uint8), view_of(types.uint8), types.int64)
)
def _squared_norm(
    magnitude_2K: NDArray[np.float32],
    place_P: NDArray[np.uint8],
    code_P: NDArray[np.uint8],
    num_values: int,
) -> float:
    """Return it, or -1 if the places of some chunk are none, or a code follows the last one."""
    total = 0.0
    for k in range(len(magnitude_2K) // 2):
        entries = _num_entries(num_values, k)
        places = place_P[k * PLACE_BYTES : k * PLACE_BYTES + (entries * 3 + 1) // 2]
        if not are_places(places, entries, num_values - k * CHUNK):
            return -1.0
        for e in range(entries):
            value = _value(magnitude_2K, code_P, k, e)
            total += value * value
        if entries % 4 and code_P[k * CODE_BYTES + entries // 4] >> 2 * (entries % 4):
            return -1.0
    return total


@kernel(
    types.void(
        buffer_of(types.float64),
        view_of(types.float32),
        view_of(types.uint8),
        view_of(types.uint8),
        types.float64,
    )
)
def _accumulate_(
    total_N: NDArray[np.float64],
    magnitude_2K: NDArray[np.float32],
    place_P: NDArray[np.uint8],
    code_P: NDArray[np.uint8],
    share: float,
) -> None:
    for k in range(len(magnitude_2K) // 2):
        places = place_P[k * PLACE_BYTES :]
        for e in range(_num_entries(len(total_N), k)):
            i = k * CHUNK + index_at(places, e)
            if i < len(total_N):  # else nobody checked it
                total_N[i] += share * _value(magnitude_2K, code_P, k, e)


@kernel(
    types.void(
        buffer_of(types.float32), view_of(types.float32), view_of(types.uint8), view_of(types.uint8)
    )
)
def _subtract_(
    residual_N: NDArray[np.float32],
    magnitude_2K: NDArray[np.float32],
    place_P: NDArray[np.uint8],
    code_P: NDArray[np.uint8],
) -> None:
    for k in range(len(magnitude_2K) // 2):
        places = place_P[k * PLACE_BYTES :]
        for e in range(_num_entries(len(residual_N), k)):
            i = k * CHUNK + index_at(places, e)
            residual_N[i] -= np.float32(_value(magnitude_2K, code_P, k, e))
