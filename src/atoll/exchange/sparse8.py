"""Sparse8: of each chunk of 4096 values the 256 largest, each as a place and a byte.

    x --cut into chunks--> the largest 256 --> place (12 bits), q = round(x / scale)

The sparse form of an update: a mean of four `sparse` contributions has no more than 256 values in a
chunk. The scale of a chunk is its largest value / 127. A full chunk takes 644 bytes, 1.26 bits for
each value; a shorter last one of n values keeps ceil(n / 16). On the wire: all scales, then all
places, then all q.

Shapes: N values, K chunks of C = 4096 values, E = 256 entries of a chunk.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from atoll.errors import BadBlobError
from atoll.exchange import sizes
from atoll.exchange.int8 import LARGEST_SCALE, LEVELS, TINY
from atoll.exchange.topk import are_places, index_at, pack_, select_
from atoll.exchange.values import (
    LARGEST_BITS,
    NO_SIGN,
    blocks_of,
    check_size,
    difference,
    float_of,
    leave_ as leave_,
    narrowed,
    placed,
    refuse_unfit,
    room_for,
    zeros,
)
from atoll.ids import Buffer
from atoll.outer.kernel import buffer_of, inlined, kernel, view_of

FEEDBACK = None
CHUNK = sizes.CHUNK
VALUES_PER_ENTRY = sizes.SPARSE8_VALUES
ENTRIES = CHUNK // VALUES_PER_ENTRY
PLACE_BYTES = ENTRIES * 3 // 2

Parts = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int8]]


encoded_bytes = sizes.sparse8


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


def check(payload: Buffer, num_values: int) -> float:
    scale_K, place_P, q_P = _parts(np.frombuffer(payload, np.uint8), num_values)
    if not np.all((scale_K >= TINY) & (scale_K <= LARGEST_SCALE)):  # false for a NaN, too
        raise BadBlobError("an encoded slice has a scale that is no scale")
    if np.any(q_P < -LEVELS):
        raise BadBlobError("an encoded slice has a level that is no level")
    squares = float(_squared_norm(scale_K, place_P, q_P, num_values))
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
    """Return views of the scales, the places and the q."""
    check_size(payload.data, expected=encoded_bytes(num_values))
    scale_bytes, place_bytes, _ = sizes.sparse8_parts(num_values)
    rest = payload[scale_bytes:]
    return payload[:scale_bytes].view("<f4"), rest[:place_bytes], rest[place_bytes:].view(np.int8)


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


@kernel(
    types.boolean(
        buffer_of(types.float32),
        buffer_of(types.uint8),
        buffer_of(types.int8),
        view_of(types.float32, ndim=2),
        types.int64,
    )
)
def _encode_(
    scale_K: NDArray[np.float32],
    place_P: NDArray[np.uint8],
    q_P: NDArray[np.int8],
    x_KC: NDArray[np.float32],
    num_values: int,
) -> bool:
    size_C = np.empty(CHUNK, np.int32)
    bits_KC = x_KC.view(np.int32)
    index_E = np.empty(ENTRIES, np.uint16)
    largest_of_all = np.int32(0)
    for k in range(len(x_KC)):
        for i in range(CHUNK):
            size_C[i] = bits_KC[k, i] & NO_SIGN
        largest = np.int32(0)
        for i in range(CHUNK):
            largest = max(largest, size_C[i])
        largest_of_all = max(largest_of_all, largest)
        scale = max(float_of(int(largest)) / np.float32(LEVELS), np.float32(TINY))
        scale_K[k] = scale
        length, entries = min(CHUNK, num_values - k * CHUNK), _num_entries(num_values, k)
        select_(index_E[:entries], size_C[:length])
        pack_(place_P[k * PLACE_BYTES :], index_E[:entries])
        for e in range(entries):
            q_P[k * ENTRIES + e] = np.int8(np.rint(x_KC[k, index_E[e]] / scale))
    return bool(largest_of_all <= LARGEST_BITS)


@kernel(
    types.float64(view_of(types.float32), view_of(types.uint8), view_of(types.int8), types.int64)
)
def _squared_norm(
    scale_K: NDArray[np.float32],
    place_P: NDArray[np.uint8],
    q_P: NDArray[np.int8],
    num_values: int,
) -> float:
    """Return it, or -1 if the places of some chunk are none."""
    total = 0.0
    for k in range(len(scale_K)):
        entries = _num_entries(num_values, k)
        places = place_P[k * PLACE_BYTES : k * PLACE_BYTES + (entries * 3 + 1) // 2]
        if not are_places(places, entries, num_values - k * CHUNK):
            return -1.0
        squares = 0  # of whole numbers: exact
        for e in range(entries):
            squares += int(q_P[k * ENTRIES + e]) * int(q_P[k * ENTRIES + e])
        total += squares * (np.float64(scale_K[k]) * np.float64(scale_K[k]))
    return total


@kernel(
    types.void(
        buffer_of(types.float64),
        view_of(types.float32),
        view_of(types.uint8),
        view_of(types.int8),
        types.float64,
    )
)
def _accumulate_(
    total_N: NDArray[np.float64],
    scale_K: NDArray[np.float32],
    place_P: NDArray[np.uint8],
    q_P: NDArray[np.int8],
    share: float,
) -> None:
    for k in range(len(scale_K)):
        scale, places = np.float64(scale_K[k]), place_P[k * PLACE_BYTES :]
        for e in range(_num_entries(len(total_N), k)):
            i = k * CHUNK + index_at(places, e)
            if i < len(total_N):  # else nobody checked it
                total_N[i] += share * (scale * q_P[k * ENTRIES + e])
