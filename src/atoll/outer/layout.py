"""The canonical flat vector: where each parameter lies in it, and how it is cut for the exchange.

    parameters --Layout--> one flat vector --cut into--> fragments --cut into--> slices

A fragment is synchronised together, a slice is averaged in one place.

Every cut is a function of sizes alone, never of who takes part, so all members find the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from atoll.units import MIB

NUM_SLICES = 64  # enough to spread over reducers and to overlap encoding with sending
SLICE_STEP = 4096  # a multiple of every codec's block, so that no block crosses a border
MIN_SLICE = 65_536
MAX_SLICE = 16 * MIB


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter: the values `start` to `stop - 1` of the flat vector, row by row."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """The values `start` to `stop - 1` of the flat vector."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> "Layout":
        """Return the layout of these parameters, one after the other in the order given."""
        assert len({name for name, _ in shapes}) == len(shapes), "two parameters of one name"
        entries = []
        start = 0
        for name, shape in shapes:
            stop = start + prod(shape)
            entries.append(Entry(name, shape, start, stop))
            start = stop
        return cls(tuple(entries))

    @property
    def num_values(self) -> int:
        return self.entries[-1].stop if self.entries else 0

    def fragments(self, num: int) -> tuple[Fragment, ...]:
        """Return `num` contiguous fragments whose sizes differ by one value at most."""
        borders = [self.num_values * index // num for index in range(num + 1)]
        return tuple(Fragment(index, borders[index], borders[index + 1]) for index in range(num))


def slice_bounds(num_values: int) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) of each slice of a fragment, counted from the fragment's start."""
    steps = -(-num_values // (NUM_SLICES * SLICE_STEP))
    size = min(max(steps * SLICE_STEP, MIN_SLICE), MAX_SLICE)
    return tuple((start, min(start + size, num_values)) for start in range(0, num_values, size))
