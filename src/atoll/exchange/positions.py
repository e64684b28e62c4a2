"""Where members are, as far as the round trips between them tell. Pure.

    round trips (of whom, to whom, seconds) --located--> a point of each, and its height

Points whose distances are seconds, and heights for what a line adds whoever is at its other end: a
round trip is the distance between two points, and both heights (Vivaldi; Dabek et al., SIGCOMM
2004, sections 2 and 5.4). What a member says moves that member alone. How far others are misled who
have measured one that lies is bounded: no pull is stronger than twice the middle one.

Shapes: N members, M of them that move, T round trips of each at most; 3 axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.ids import PeerId

MIN_TRIPS: Final = 4  # to others that are placed, too: they say where a point is, and how high
FITS_S: Final = 0.02  # by which three quarters of the round trips may be off, or fewer
TURNS: Final = 4  # after each, whoever is stuck begins again beside the nearest it has measured
SWEEPS: Final = 40  # in a turn
STEP: Final = 0.5  # of what is missing, in a sweep
HEIGHT_STEP: Final = 0.25
EXTENT_S: Final = 0.1  # half of the cube in which those begin of whom nothing is known
BESIDE_S: Final = 0.005  # how far beside another one a member begins, at most, on each axis
NOWHERE: Final = 1e-9  # seconds: so that nothing is divided by zero

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Position(NamedTuple):
    """Seconds, all four."""

    x: float
    y: float
    z: float
    height: float


@dataclass
class _Springs:
    """Each round trip pulls or pushes the member that has measured it. NaN: there is none."""

    x_N3: Floats
    height_N: Floats
    target_NT: NDArray[np.int64]
    seconds_NT: Floats

    def sweep_(self, moving_M: NDArray[np.int64]) -> None:
        """Move these a little, each by what its own round trips say."""
        vector_MT3, distance_MT, missing_MT = self._missing(moving_M)
        at_most_M1 = 2 * _quantile(np.abs(missing_MT), 0.5)[:, None]
        is_there_MT = ~np.isnan(missing_MT)
        pull_MT = np.where(is_there_MT, np.clip(missing_MT, -at_most_M1, at_most_M1), 0.0)
        pull_MT /= is_there_MT.sum(axis=1, keepdims=True)
        step_M3 = np.einsum("mt,mta->ma", pull_MT / distance_MT, vector_MT3)
        height_M = self.height_N[moving_M] + HEIGHT_STEP * pull_MT.sum(axis=1)
        self.x_N3[moving_M] += STEP * step_M3
        self.height_N[moving_M] = np.maximum(height_M, 0.0)

    def fits(self, who_M: NDArray[np.int64]) -> Bools:
        """Return which of these are where their round trips say."""
        missing_MT = self._missing(who_M)[2]
        return _quantile(np.abs(missing_MT), 0.75) <= FITS_S

    def nearest(self, who_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which member has answered each of these soonest."""
        nearest_M = np.nanargmin(self.seconds_NT[who_M], axis=1)
        target_M: NDArray[np.int64] = self.target_NT[who_M, nearest_M]
        return target_M

    def put_beside_nearest_(self, who_M: NDArray[np.int64]) -> None:
        """Let these begin again, beside whoever has answered them soonest."""
        offset_M3 = BESIDE_S * _scattered(len(self.x_N3))[who_M]
        self.x_N3[who_M] = self.x_N3[self.nearest(who_M)] + offset_M3

    def _missing(self, who_M: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
        """Return the vectors from the targets, their lengths, and what these lack."""
        target_MT = self.target_NT[who_M]
        vector_MT3 = self.x_N3[who_M][:, None] - self.x_N3[target_MT]
        distance_MT = np.sqrt(np.einsum("mta,mta->mt", vector_MT3, vector_MT3)) + NOWHERE
        heights_MT = self.height_N[who_M][:, None] + self.height_N[target_MT]
        return vector_MT3, distance_MT, self.seconds_NT[who_M] - distance_MT - heights_MT


def located(
    before: Mapping[PeerId, Position], trips: Mapping[PeerId, Mapping[PeerId, float]]
) -> dict[PeerId, Position]:
    """Return where each is that has measured enough of the others; `before`: where they were.

    `trips` are the seconds to others that each has measured, above 0. Who was placed, and still
    fits, stays exactly there: few move when few come or go. So does whoever has measured nobody but
    those who are gone.
    """
    kept = {peer: before[peer] for peer in trips if peer in before}
    members = _with_enough(trips)
    if not members:
        return kept
    springs = _springs(before, trips, members)
    everybody = np.arange(len(members))
    is_new_N = np.array([peer not in before for peer in members])
    moving = everybody[is_new_N | ~springs.fits(everybody)]
    new = everybody[is_new_N]
    springs.put_beside_nearest_(new[~is_new_N[springs.nearest(new)]])
    for turn in range(TURNS if len(moving) else 0):
        if turn:
            springs.put_beside_nearest_(moving[~springs.fits(moving)])
        for _ in range(SWEEPS):
            springs.sweep_(moving)
    points = np.column_stack((springs.x_N3, springs.height_N)).tolist()
    found = {peer: Position(*point) for peer, point in zip(members, points, strict=True)}
    return kept | found


def _with_enough(trips: Mapping[PeerId, Mapping[PeerId, float]]) -> list[PeerId]:
    """Return, in order, those who have measured enough others that have done the same."""
    enough, more = set[PeerId](), set(trips)
    while more != enough:
        enough = more
        more = {p for p in enough if sum(to in enough for to in trips[p]) >= MIN_TRIPS}
    return sorted(enough)


def _springs(
    before: Mapping[PeerId, Position],
    trips: Mapping[PeerId, Mapping[PeerId, float]],
    members: list[PeerId],
) -> _Springs:
    """Return the springs of these members, where they were, or else somewhere."""
    number = {peer: index for index, peer in enumerate(members)}
    known = [
        [(number[to], seconds) for to, seconds in sorted(trips[peer].items()) if to in number]
        for peer in members
    ]
    shape = len(members), max(map(len, known))
    target_NT, seconds_NT = np.zeros(shape, np.int64), np.full(shape, np.nan)
    for row, of_member in enumerate(known):
        for column, (to, seconds) in enumerate(of_member):
            target_NT[row, column], seconds_NT[row, column] = to, seconds
    somewhere_N3 = (EXTENT_S * _scattered(len(members))).tolist()
    position_N4 = np.array(
        [
            before.get(peer, (*point, min(seconds for _, seconds in to) / 2))
            for peer, point, to in zip(members, somewhere_N3, known, strict=True)
        ]
    )
    return _Springs(position_N4[:, :3], position_N4[:, 3], target_NT, seconds_NT)


def _quantile(values_MT: Floats, share: float) -> Floats:
    """Return the value of each row that so many others are not above; NaN does not count."""
    number_M1 = np.sum(~np.isnan(values_MT), axis=1, keepdims=True)
    index_M1 = ((number_M1 - 1) * share).astype(np.int64)
    quantile_M1: Floats = np.take_along_axis(np.sort(values_MT, axis=1), index_M1, axis=1)
    return quantile_M1[:, 0]


def _scattered(num: int) -> Floats:
    """Return points all over a cube from -1 to 1, always the same ones.

    Kronecker's sequence of the powers of 1/r, where r^4 = r + 1 (M. Roberts, "The unreasonable
    effectiveness of quasirandom sequences", 2018).
    """
    steps_3 = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    points_N3: Floats = 2 * ((0.5 + np.arange(1, num + 1)[:, None] * steps_3) % 1) - 1
    return points_N3
