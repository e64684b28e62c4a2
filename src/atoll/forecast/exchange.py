"""What the exchange of one round moves, and how long its two phases take, member by member.

    lines --shares_of_work, assign_by_shares--> slices of each reducer --> bytes --> seconds

    contributions   every contributor brings each slice to the reducer of its region
    updates         partial sums go up to the root, if there is more than one region; every member
                    fetches each update from the reducer of its region, which has it from the one
                    above; the built-in member from the root: a commit waits for its disk

Who reduces what is decided by the host's own code (exchange/regions.py, exchange/plan.py). The
second phase begins when the first is over, so each takes as long as its slowest line;
`plan.exchange_s`, which the shares minimise, adds up each member's bytes of both and is a lower
bound (with one region).

Shapes: M members, S slices, G groups (exchange/tree.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.exchange.plan import Link
from atoll.exchange.positions import Position
from atoll.exchange.regions import Division, Volumes, assign_places, divide
from atoll.ids import PeerId, peer_id_of
from atoll.units import KIB

Floats = NDArray[np.float64]

# Payload in what a line carries: 1448 bytes of a TCP segment with timestamps in an Ethernet frame
# of 1514, and TLS records of 16 KiB with 22 bytes around them (RFC 8446, section 5.2).
PAYLOAD_SHARE: Final = 1448 / 1514 * (16 * KIB) / (16 * KIB + 22)

# What the process of an agent moves at most, each way at once, with encoding, TLS and checking: on
# one core, 0.54 s for 62 MB each way (docs/benchmarks/exchange.md, loopback, 2026-11-23).
AGENT_BYTES_PER_S: Final = 62.2e6 / 0.54


def payload_rate(mbps: float) -> float:
    """Return the payload, in bytes per second, that a line of so many Mb/s carries."""
    return min(mbps * 1e6 / 8 * PAYLOAD_SHARE, AGENT_BYTES_PER_S)


class Sizes(NamedTuple):
    """Of a fragment: the bytes of each slice, by what it is, and how many values all have."""

    contribution: tuple[int, ...]
    update: tuple[int, ...]
    partial: tuple[int, ...]
    num_values: int

    @property
    def slice_values(self) -> int:
        return -(-self.num_values // len(self.update))


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """The payload that each member sends and receives, and how long that takes on its line."""

    up_bytes_M: Floats
    down_bytes_M: Floats
    up_s_M: Floats
    down_s_M: Floats

    def seconds(self) -> Floats:
        """Return the time of each member: both directions count apart."""
        return np.maximum(self.up_s_M, self.down_s_M)


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """`num_slices_M`: how many slices each member reduces, of regions and above them."""

    lines: tuple[Link, ...]
    num_slices_M: NDArray[np.int64]
    formed_bytes_M: Floats  # updates and partial sums that the member forms
    num_levels: int  # from the regions to the root; 1: there is one region
    contributions: Phase
    updates: Phase

    def sent_bytes(self) -> Floats:
        """Return what each member sends in both phases."""
        return self.contributions.up_bytes_M + self.updates.up_bytes_M

    def received_bytes(self) -> Floats:
        """Return what each member receives in both phases."""
        return self.contributions.down_bytes_M + self.updates.down_bytes_M

    def seconds(self) -> float:
        """Return the time of both phases, if all begin at once and nobody is left out."""
        return float(self.contributions.seconds().max() + self.updates.seconds().max())


def exchange_of(
    lines: Sequence[Link],
    sizes: Sizes,
    *,
    region_size: int,
    positions: Mapping[PeerId, Position] = MappingProxyType({}),
) -> Exchange:
    """Return the exchange of a fragment of these slices among these members; all rates are known.

    Somebody has to reduce. `positions` say who is near whom.
    """
    lines = tuple(sorted(lines, key=lambda line: line.peer))
    division = _division(lines, sizes, region_size=region_size, positions=positions)
    number = {line.peer: index for index, line in enumerate(lines)}
    reducer_GS = np.array([number[peer] for peer in assign_places(division)], np.int64).reshape(
        division.tree.num_groups, -1
    )
    contributions, updates, formed = (_Moved(len(lines)) for _ in range(3))
    region_M = np.array([_region(line, division) for line in lines], np.int64)
    for group in range(division.tree.num_regions):
        inside_M = region_M == group
        contributions.bring(sizes.contribution, reducer_GS[group], inside_M)
        updates.hand_out(sizes.update, reducer_GS[group], inside_M)
    updates.hand_out(sizes.update, reducer_GS[division.tree.root], region_M < 0)
    for group in range(division.tree.root):
        parent = division.tree.parent(group)
        assert parent is not None, "it is below the root"
        above_S = reducer_GS[parent]
        updates.pass_on(sizes.partial, sender_S=reducer_GS[group], receiver_S=above_S)
        updates.pass_on(sizes.update, sender_S=above_S, receiver_S=reducer_GS[group])
        np.add.at(formed.up_bytes_M, reducer_GS[group], np.array(sizes.partial, np.float64))
    root_S = reducer_GS[division.tree.root]
    np.add.at(formed.up_bytes_M, root_S, np.array(sizes.update, np.float64))
    rates_DM = np.array([[line.up, line.down] for line in lines], np.float64).T
    return Exchange(
        lines=lines,
        num_slices_M=np.bincount(reducer_GS.ravel(), minlength=len(lines)),
        formed_bytes_M=formed.up_bytes_M,
        num_levels=len(division.tree.widths),
        contributions=contributions.phase(rates_DM),
        updates=updates.phase(rates_DM),
    )


def _division(
    lines: Sequence[Link],
    sizes: Sizes,
    *,
    region_size: int,
    positions: Mapping[PeerId, Position],
) -> Division:
    """Return how the host would divide these, with ids that are chance, as those of members are."""
    peers = {peer_id_of(line.peer.encode()): line.peer for line in lines}
    ids = {peer: chance for chance, peer in peers.items()}
    reducers = [line.peer for line in lines if line.reduces]
    tree, regions = divide(
        [ids[line.peer] for line in lines if line.contributes],
        [ids[peer] for peer in reducers],
        positions={ids[peer]: position for peer, position in positions.items()},
        size=region_size,
        num_slices=len(sizes.update),
    )
    return Division(
        tree=tree,
        regions={peers[chance]: region for chance, region in regions.items()},
        links={line.peer: line for line in lines},
        reducers=reducers,
        volumes=Volumes(
            contribution=sum(sizes.contribution),
            update=sum(sizes.update),
            partial=sum(sizes.partial),
        ),
    )


def _region(line: Link, division: Division) -> int:
    """Return the region of a member; below 0: of none, it turns to the root."""
    return division.regions.get(line.peer, 0) if line.contributes else -1


class _Moved:
    """The bytes that each member sends and receives."""

    def __init__(self, num_members: int) -> None:
        self.up_bytes_M = np.zeros(num_members)
        self.down_bytes_M = np.zeros(num_members)

    def bring(
        self, bytes_S: Sequence[int], reducer_S: NDArray[np.int64], inside_M: NDArray[np.bool_]
    ) -> None:
        """Let each of these members bring each slice to its reducer, if that is another one."""
        sent_M, received_M = _between(bytes_S, reducer_S, inside_M)
        self.up_bytes_M += sent_M
        self.down_bytes_M += received_M

    def hand_out(
        self, bytes_S: Sequence[int], reducer_S: NDArray[np.int64], inside_M: NDArray[np.bool_]
    ) -> None:
        """Let each of these members fetch each slice from its reducer, if that is another one."""
        received_M, sent_M = _between(bytes_S, reducer_S, inside_M)
        self.up_bytes_M += sent_M
        self.down_bytes_M += received_M

    def pass_on(
        self,
        bytes_S: Sequence[int],
        *,
        sender_S: NDArray[np.int64],
        receiver_S: NDArray[np.int64],
    ) -> None:
        """Let each slice go from one to another, where that is another."""
        moved_S = np.array(bytes_S, np.float64) * (sender_S != receiver_S)
        np.add.at(self.up_bytes_M, sender_S, moved_S)
        np.add.at(self.down_bytes_M, receiver_S, moved_S)

    def phase(self, rates_DM: Floats) -> Phase:
        up_bytes_M, down_bytes_M = self.up_bytes_M, self.down_bytes_M
        return Phase(up_bytes_M, down_bytes_M, up_bytes_M / rates_DM[0], down_bytes_M / rates_DM[1])


def _between(
    bytes_S: Sequence[int], reducer_S: NDArray[np.int64], inside_M: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return the bytes of these members, and those of reducers, of one slice for each of them."""
    reduced_M: Floats = np.zeros(len(inside_M))
    np.add.at(reduced_M, reducer_S, np.array(bytes_S, np.float64))
    return inside_M * (sum(bytes_S) - reduced_M), reduced_M * (inside_M.sum() - inside_M)


def ring_rate(*, num_bytes: float, num_peers: int, seconds: float) -> float:
    """Return the bytes per second at which a ring all-reduce of N peers takes so long.

    Each peer sends 2 (N - 1) / N of the vector, and receives as much at the same time (Patarasu and
    Yuan, Journal of Parallel and Distributed Computing 69, 2009).
    """
    return 2 * (num_peers - 1) / num_peers * num_bytes / seconds
