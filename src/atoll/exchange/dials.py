"""With how many others a plan has each member talk, and what keeps that to some dozens. Pure.

A dial is a member that turns to another one, as the plan says: each of a region to its reducers;
the reducer of a sum to those of the sums that it is made of; and these to it, for the update. So
two that reduce one slice above and below each other are two dials, and both count for both.

Where all are in one region, as many reduce as can: each has to do with the others of it, and the
host, whatever the plan. Of a divided round, n members of a region turn to its m reducers. Slices
are dealt out in K bundles, K <= BUNDLES, that are the same everywhere, so who has b of them turns
to b others at most for each group above or below:

    reducer of a region    (n - 1) + (m - 1) + 2 b + 1 host         b <= K - (m - 1)
    reducer above, of c    2 b c + 2 b + m of its own region + 1 host, or at the root 2 b c + m + 2

With n <= 64 the first is MOST_DIALS at most. The second is, if b (c + 1) <= WIDEST.
"""

from typing import Final

from atoll.exchange.tree import is_divided

LARGEST: Final = 64  # members of a region; where the config has larger ones, so are these figures
BUNDLES: Final = 16
MOST_DIALS: Final = LARGEST + 2 * BUNDLES
WIDEST: Final = (MOST_DIALS - BUNDLES - 2) // 2
FAN_IN: Final = WIDEST - 1  # with a bundle each


def fan_in(region_size: int, num_slices: int) -> int:
    """Return how many groups one above them adds up at most.

    Where slices are many, so many that whoever has one bundle takes in as much as one sum of all.
    """
    return min(region_size, FAN_IN if num_slices < BUNDLES else BUNDLES)


def enough_reducers(num_members: int, region_size: int) -> int:
    """Return how many who can reduce so many members need at least; 0: there is one region."""
    return 2 * -(-num_members // region_size) if is_divided(num_members, region_size) else 0
