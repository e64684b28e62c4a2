"""How a fragment is cut into slices. A slice is averaged in one place, and is what moves at once.

The cut is a function of the fragment's size alone, never of who takes part, so all members find the
same one.
"""

from typing import Final

from atoll.units import KIB, MIB

SLICE_STEP: Final = 4096  # a multiple of every codec's block, so that no block crosses a border
MANY_SLICES: Final = 32  # several for each of 8 reducers, and enough to overlap coding with sending
MOST_SLICES: Final = 128  # more would only be more messages
SMALLEST_SLICE: Final = 16 * KIB  # below, a message costs more than the values in it
SMALL_SLICE: Final = 128 * KIB
LARGEST_SLICE: Final = 16 * MIB  # one is in memory as a whole, a few times over


def slice_bounds(num_values: int) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) of each slice of a fragment, counted from the fragment's start.

    As a fragment grows, its 32 slices grow to `SMALL_SLICE`; then it has more of that size, up to
    128; then these grow to `LARGEST_SLICE`.
    """
    size = max(min(num_values // MANY_SLICES, SMALL_SLICE), -(-num_values // MOST_SLICES))
    size = min(max(-(-size // SLICE_STEP) * SLICE_STEP, SMALLEST_SLICE), LARGEST_SLICE)
    return tuple((start, min(start + size, num_values)) for start in range(0, num_values, size))
