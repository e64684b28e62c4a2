"""Lines to the internet, by name, and how those who use them at once share them. No clock here.

Rates are what is left for payloads; a latency is that from a machine to the middle of the internet,
so the round trip between two of them is twice the sum of theirs.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from types import MappingProxyType
from typing import Final, TypeVar

from msgspec import Struct

MEGABIT: Final = 1_000_000 / 8  # bytes per second
SEGMENT_BYTES: Final = 1448
K = TypeVar("K", bound=Hashable)


class Link(Struct, frozen=True, kw_only=True):
    """`jitter_s` is the most that a message is late by; `loss` the share of packets that is lost.

    Whoever is behind `nat` can dial, and cannot be dialled.
    """

    up_bytes_per_s: float
    down_bytes_per_s: float
    latency_s: float
    jitter_s: float = 0.0
    loss: float = 0.0
    nat: bool = False


LINKS: Final[Mapping[str, Link]] = MappingProxyType(
    {
        "home-dsl": Link(
            up_bytes_per_s=15 * MEGABIT,
            down_bytes_per_s=110 * MEGABIT,
            latency_s=0.012,
            jitter_s=0.006,
            loss=1e-4,
            nat=True,
        ),
        "home-fibre": Link(
            up_bytes_per_s=500 * MEGABIT,
            down_bytes_per_s=1000 * MEGABIT,
            latency_s=0.005,
            jitter_s=0.002,
        ),
        "lte": Link(
            up_bytes_per_s=10 * MEGABIT,
            down_bytes_per_s=40 * MEGABIT,
            latency_s=0.03,
            jitter_s=0.06,
            loss=5e-3,
            nat=True,
        ),
        "datacenter": Link(
            up_bytes_per_s=10_000 * MEGABIT,
            down_bytes_per_s=10_000 * MEGABIT,
            latency_s=0.0005,
        ),
        "intercontinental": Link(
            up_bytes_per_s=1000 * MEGABIT,
            down_bytes_per_s=1000 * MEGABIT,
            latency_s=0.075,
            jitter_s=0.01,
            loss=1e-3,
        ),
    }
)


def round_trip_s(one: Link, other: Link, *, apart_s: float = 0.0) -> float:
    """Return how long it takes to the other and back; `apart_s`: from place to place, one way."""
    return 2 * (one.latency_s + other.latency_s + apart_s)


def loss_between(one: Link, other: Link) -> float:
    return 1 - (1 - one.loss) * (1 - other.loss)


def most_bytes_per_s(one: Link, other: Link, *, apart_s: float = 0.0) -> float:
    """Return what a TCP stream carries where packets are lost (Mathis et al. 1997, eq. 3)."""
    lost = loss_between(one, other)
    if not lost:
        return inf
    return SEGMENT_BYTES / max(round_trip_s(one, other, apart_s=apart_s), 1e-4) * sqrt(1.5 / lost)


@dataclass(frozen=True, slots=True)
class Demand:
    """A flow through an uplink and a downlink, which wants no more than `most` bytes per second."""

    up: int
    down: int
    most: float = inf


def share_out(demands: Sequence[Demand], capacity: Mapping[tuple[str, int], float]) -> list[float]:
    """Return the max-min fair rate of each flow; `capacity` has ("up", i) and ("down", j).

    No flow can have more without taking it from one that has no more than itself (Bertsekas and
    Gallager, Data Networks, 6.5.2: fill all alike until a link is full, then go on with the rest).
    """
    rates = [0.0] * len(demands)
    left = dict(capacity)
    users: dict[tuple[str, int], set[int]] = {}
    for index, demand in enumerate(demands):
        for link in (("up", demand.up), ("down", demand.down)):
            users.setdefault(link, set()).add(index)
    waiting = set(range(len(demands)))
    while waiting:
        fair, full = min((left[link] / len(using), link) for link, using in users.items() if using)
        modest = {index for index in waiting if demands[index].most <= fair}
        for index in sorted(modest or users[full]):
            demand = demands[index]
            rates[index] = min(demand.most, max(fair, 0.0))
            waiting.discard(index)
            for link in (("up", demand.up), ("down", demand.down)):
                left[link] -= rates[index]
                users[link].discard(index)
    return rates
