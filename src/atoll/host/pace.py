"""How many inner steps a peer makes in a round. Pure.

    pace = "steps"   each the same number, H for each turn of a fragment: whoever is slow is late
    pace = "time"    the median peer H; the others what they manage meanwhile, so none is late

    median      |=======H=======|
    3 x faster  |======3 H======|        leases, and so tokens and share, follow from the steps
    8 x slower  |=====H / 8=====|

So slow workers do fewer steps instead of holding back the fast ones (dynamic local updates,
arXiv 2401.09135); each counts by its tokens (arXiv 2604.21428).
"""

from fractions import Fraction
from math import floor
from typing import Final

MOST: Final = 8  # times the median peer's steps: weights that are longer on their own drift apart
FIRST: Final = Fraction(1, 8)  # of H: what a peer makes whose speed nobody knows yet


def inner_steps(speed: float | None, middle: float | None, *, num_steps: int) -> int:
    """Return the steps of a round that lasts so long that the median peer makes `num_steps`.

    Speeds are in whatever unit, each above 0; None: not known. `middle` is the median of those that
    are. At least one step, at most `MOST` times `num_steps`. A part of a step is left off, so that
    the peer is not late for it.
    """
    if speed is None or middle is None:
        return max(1, floor(FIRST * num_steps))
    ratio = Fraction(speed) / Fraction(middle)
    return max(1, floor(min(ratio, Fraction(MOST)) * num_steps))
