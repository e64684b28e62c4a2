"""How the sum of a slice is split among reducers, when one cannot take in all contributions. Pure.

    region 0: contributors --slices--> regional reducer --partial sum--+
    region 1: contributors --slices--> regional reducer --partial sum--+--> root: the mean, encoded
    region 2: ...                                                      |
    root --update--> regional reducers --> their contributors

Above `fan_in` regions there is a level between, whose reducers add up partial sums to partial sums.
All of them are groups: the regions first, then the levels above them, the root last. With a single
region that is the root. A place is what somebody reduces: one slice of one group.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")
MIN_FAN_IN = 2


@dataclass(frozen=True, slots=True)
class Tree:
    """`widths`: how many groups each level has, from the regions to the root, which is one."""

    num_slices: int
    widths: tuple[int, ...] = (1,)

    @classmethod
    def over(cls, num_slices: int, *, num_regions: int, fan_in: int) -> "Tree":
        """Return the lowest tree in which no group adds up more than `fan_in` of those below it."""
        widths = [num_regions]
        while widths[-1] > 1:
            widths.append(-(-widths[-1] // max(fan_in, MIN_FAN_IN)))
        return cls(num_slices, tuple(widths))

    @classmethod
    def below_root(cls, num_slices: int, num_groups: int, *, fan_in: int) -> "Tree | None":
        """Return the tree that has so many groups below its root; None: there is no such tree."""
        for num_regions in range(1, num_groups + 1):
            tree = cls.over(num_slices, num_regions=num_regions, fan_in=fan_in)
            if tree.root == num_groups:
                return tree
        return None if num_groups else cls(num_slices)

    @property
    def is_one(self) -> bool:
        """Whether it is one: each level has fewer groups than the one below it, the last one."""
        narrows = all(above < below for below, above in pairwise(self.widths))
        return narrows and self.widths[-1:] == (1,)

    @property
    def num_regions(self) -> int:
        return self.widths[0]

    @property
    def num_groups(self) -> int:
        return sum(self.widths)

    @property
    def num_places(self) -> int:
        return self.num_groups * self.num_slices

    @property
    def root(self) -> int:
        return self.num_groups - 1

    @property
    def levels(self) -> list[range]:
        """The groups of each level."""
        starts = [sum(self.widths[:level]) for level in range(len(self.widths))]
        return [
            range(start, start + width) for start, width in zip(starts, self.widths, strict=True)
        ]

    def places(self, group: int) -> range:
        """Return the places of a group, one for each slice."""
        return range(group * self.num_slices, (group + 1) * self.num_slices)

    def bundles(self, most: int) -> list[Sequence[int]]:
        """Return the slices in runs of near equal length: so many, but for one region all apart."""
        num = self.num_slices if self.num_groups == 1 else min(most, self.num_slices)
        return divided(range(self.num_slices), num)

    def place(self, group: int, index: int) -> int:
        return group * self.num_slices + index

    def group_and_slice(self, place: int) -> tuple[int, int]:
        return divmod(place, self.num_slices)

    def parent(self, group: int) -> int | None:
        """Return the group that adds up what this one has; None: it is the root."""
        for below, above in pairwise(self.levels):
            if group in below:
                return above.start + (group - below.start) * len(above) // len(below)
        return None

    def children(self, group: int) -> range:
        """Return the groups whose partial sums this one adds up, in their order; a region: none."""
        for below, above in pairwise(self.levels):
            if group in above:
                first, end = (
                    below.start + -(-(group - above.start + more) * len(below) // len(above))
                    for more in (0, 1)
                )
                return range(first, end)
        return range(0)

    def with_parents(self, groups: Iterable[int]) -> set[int]:
        """Return these groups, and all that are above one of them."""
        result = set(groups)
        for group in range(self.num_groups):
            parent = self.parent(group)
            if group in result and parent is not None:
                result.add(parent)
        return result


def is_divided(num_members: int, region_size: int) -> bool:
    """Return whether so many members are divided into regions; of size 0 there are none."""
    return 0 < region_size < num_members


def divided(items: Sequence[T], num_parts: int) -> list[Sequence[T]]:
    """Return contiguous parts of near equal length, in order."""
    bounds = [len(items) * part // num_parts for part in range(num_parts + 1)]
    return [items[start:stop] for start, stop in pairwise(bounds)]
