"""How many bytes values take when they are encoded, by codec, and how a payload is divided.

It is all that a host knows of codecs: it runs none, and nothing here is compiled. What the parts
are, each codec's own file says.
"""

from collections.abc import Callable
from typing import Final

from atoll.ids import RoundId
from atoll.model.layout import Layout
from atoll.outer.layout import slice_bounds

INT8_BLOCK: Final = 128
INT4_BLOCK: Final = 32
CHUNK: Final = 4096  # of the sparse codecs: 12 bits name a place in it
SPARSE_VALUES: Final = 64  # of which one is sent
SPARSE8_VALUES: Final = 16

Parts = tuple[int, int, int]  # bytes of scales, places and values


def num_blocks(num_values: int, block: int) -> int:
    return -(-num_values // block)


def fp64(num_values: int) -> int:
    return 8 * num_values


def fp32(num_values: int) -> int:
    return 4 * num_values


def bf16(num_values: int) -> int:
    return 2 * num_values


def int8(num_values: int) -> int:
    return 4 * num_blocks(num_values, INT8_BLOCK) + num_values


def int4(num_values: int) -> int:
    return (2 + INT4_BLOCK // 2) * num_blocks(num_values, INT4_BLOCK)


def sparse(num_values: int) -> int:
    return sum(sparse_parts(num_values))


def sparse_parts(num_values: int) -> Parts:
    """Two magnitudes for each chunk; 12 bits and 2 bits for each entry."""
    return _of_chunks(num_values, SPARSE_VALUES, scale_bytes=8, in_a_byte=4)


def sparse8(num_values: int) -> int:
    return sum(sparse8_parts(num_values))


def sparse8_parts(num_values: int) -> Parts:
    """One scale for each chunk; 12 bits and a byte for each entry."""
    return _of_chunks(num_values, SPARSE8_VALUES, scale_bytes=4, in_a_byte=1)


def _of_chunks(num_values: int, one_of: int, *, scale_bytes: int, in_a_byte: int) -> Parts:
    """Whole bytes for a chunk, of which the last one may have fewer values."""
    full, rest = divmod(num_values, CHUNK)
    entries, last = CHUNK // one_of, num_blocks(rest, one_of)
    return (
        scale_bytes * (full + (rest > 0)),
        num_blocks(entries * 3, 2) * full + num_blocks(last * 3, 2),
        num_blocks(entries, in_a_byte) * full + num_blocks(last, in_a_byte),
    )


ENCODED_BYTES: Final[dict[str, Callable[[int], int]]] = {
    "fp64": fp64,
    "fp32": fp32,
    "bf16": bf16,
    "int8": int8,
    "int4": int4,
    "sparse": sparse,
    "sparse8": sparse8,
}


def partial_codec(update_codec: str) -> str:
    """Return the codec of the partial sums of such updates: it loses nothing that they can keep."""
    return "fp64" if update_codec == "fp64" else "fp32"


def slices_of(layout: Layout, round_id: RoundId) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) in the flat vector of each slice of the fragment of this round."""
    fragment = layout.fragment_of(round_id)
    bounds = slice_bounds(fragment.stop - fragment.start)
    return tuple((fragment.start + start, fragment.start + stop) for start, stop in bounds)


def encoded_slices(layout: Layout, codec: str) -> tuple[tuple[int, ...], ...]:
    """Return how many bytes each slice of each fragment has when it is encoded."""
    encoded_bytes = ENCODED_BYTES[codec]
    first_turns = (RoundId(index + 1) for index in range(len(layout.fragments)))
    return tuple(
        tuple(encoded_bytes(stop - start) for start, stop in slices_of(layout, round_id))
        for round_id in first_turns
    )
