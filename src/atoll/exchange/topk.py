"""The largest values of each chunk of 4096: which they are, and their positions in 12 bits each.

Shapes: C = 4096 values in a chunk (the last may be shorter), E entries kept of a chunk.
"""

import numpy as np
from numpy.typing import NDArray

from atoll.outer.kernel import inlined


@inlined
def select_(index_E: NDArray[np.uint16], size_C: NDArray[np.int32]) -> None:
    """Write where the E largest sizes are, in ascending order; of equal ones the first count.

    Bisection: each pass over the chunk counts the sizes that are not below the middle.
    """
    num_kept = len(index_E)
    low, high = np.int64(0), np.int64(2**31 - 1)  # at least E sizes >= low, fewer are >= high
    while high - low > 1:
        middle = np.int32((low + high) >> 1)
        num_above = _count(size_C, middle)
        if num_above >= num_kept:
            low = np.int64(middle)
        else:
            high = np.int64(middle)
        if num_above == num_kept:
            break
    num_equal = num_kept - _count(size_C, np.int32(low + 1))
    e = 0
    for i in range(len(size_C)):
        if size_C[i] >= low:
            if size_C[i] == low:
                if num_equal == 0:
                    continue
                num_equal -= 1
            index_E[e] = i
            e += 1


@inlined
def _count(size_C: NDArray[np.int32], least: np.int32) -> int:
    count = np.int32(0)
    for i in range(len(size_C)):
        count = np.int32(count + (size_C[i] >= least))
    return int(count)


@inlined
def pack_(packed: NDArray[np.uint8], index_E: NDArray[np.uint16]) -> None:
    """Write 12 bits for each index, the lowest first; zeros fill the last byte."""
    for e in range(len(index_E)):
        at, index = e * 3 // 2, index_E[e]
        if e % 2 == 0:
            packed[at] = index & 255
            packed[at + 1] = index >> 8
        else:
            packed[at] |= (index & 15) << 4
            packed[at + 1] = index >> 4


@inlined
def index_at(packed: NDArray[np.uint8], e: int) -> int:
    """Return index e of those that `pack_` wrote."""
    at = e * 3 // 2
    pair = np.int64(packed[at]) | np.int64(packed[at + 1]) << 8
    return int(pair >> 4 if e % 2 else pair & 0xFFF)


@inlined
def are_places(packed: NDArray[np.uint8], num_kept: int, length: int) -> bool:
    """Tell whether these indices ascend, lie within `length`, and zeros fill the last byte."""
    last = -1
    for e in range(num_kept):
        index = index_at(packed, e)
        if index <= last:
            return False
        last = index
    return last < length and (num_kept % 2 == 0 or packed[len(packed) - 1] >> 4 == 0)
