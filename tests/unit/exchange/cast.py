"""Members that the tests of this folder share: a reducer, and slices that are brought to it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tests.unit.memory import Network

from atoll.exchange.blobs import BlobStore
from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import CODECS
from atoll.exchange.links import Links
from atoll.exchange.reduce import Means, Reducer, Reducers
from atoll.exchange.serve import BlobServer, Locate
from atoll.ids import Digest, PeerId, RoundId, digest_of
from atoll.net import wire

A, B, C, D = (PeerId(letter * 32) for letter in "abcd")
BOUNDS = ((0, 300), (300, 500))
SIZES = tuple(stop - start for start, stop in BOUNDS)
ROUND = RoundId(3)


class Told(list[wire.Message]):
    """What a reducer told the host, by kind."""

    def delivered(self) -> list[wire.Delivered]:
        return [message for message in self if isinstance(message, wire.Delivered)]

    def reduced(self) -> list[wire.Reduced]:
        return [message for message in self if isinstance(message, wire.Reduced)]


def reducers(
    path: Path, *, codec: str = "int8", sizes: Sequence[int] = SIZES
) -> tuple[Reducers, Told]:
    """Return the reducers of a member, with round 3 open, and what they tell the host."""
    told = Told()
    reducers = Reducers(Means(BlobStore(path), told.append, Buffers()))
    open_round(reducers, ROUND, codec=codec, sizes=sizes)
    return reducers, told


def reducer(
    path: Path, *, codec: str = "int8", sizes: Sequence[int] = SIZES
) -> tuple[Reducer, Told]:
    """Return a reducer for round 3, and what it tells the host."""
    all_, told = reducers(path, codec=codec, sizes=sizes)
    return reducer_of(all_, ROUND), told


def reducer_of(reducers: Reducers, round_id: RoundId) -> Reducer:
    reducer = reducers.of(round_id)
    assert reducer is not None
    return reducer


async def reduce(reducer: Reducer, job: wire.Reduce) -> None:
    """Let the reducer form what the host asks for, once all its inputs are there."""
    if await reducer.has_inputs(job):
        await reducer.form(job)


def open_round(
    reducers: Reducers,
    round_id: int,
    *,
    codec: str = "int8",
    own: tuple[int, int] | None = None,
    sizes: Sequence[int] = SIZES,
) -> None:
    """Let the reducers follow a plan that gives them slices `own[0]` to `own[1] - 1`, or all."""
    start, stop = own or (0, len(sizes))
    address = wire.Address(peer=D, host="h", port=1)
    reductions = (wire.Reduction(reducer=address, start=start, stop=stop),)
    plan = wire.Plan(
        round=RoundId(round_id),
        version=1,
        fragment=0,
        first_step=0,
        codec=codec,
        update_codec=codec,
        reductions=reductions,
        leases=(),
        sources=(),
    )
    reducers.follow(plan, own=reductions, sizes=sizes)


def server(reducers: Reducers, links: Links, *, locate: Sequence[Locate] = ()) -> BlobServer:
    """Return the serving side of the member whose links these are."""
    return BlobServer(reducers=reducers, updates=lambda _: None, states=locate, links=links)


async def serve(network: Network, peer: PeerId, reducers: Reducers, *, port: int = 1) -> Links:
    """Let this member serve its reducers on the network; return its links."""
    links = Links(network.transport(peer))
    serving = server(reducers, links)
    await network.transport(peer).listen(serving.serve, host="h", port=port)
    return links


def values(seed: int, index: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZES[index])


def encoded(seed: int, index: int = 0, *, codec: str = "int8") -> tuple[Digest, bytes]:
    payload = CODECS[codec].encode(values(seed, index))
    return digest_of(payload), payload


def job(*inputs: tuple[PeerId, float, Digest], index: int = 0, version: int = 1) -> wire.Reduce:
    return wire.Reduce(
        round=ROUND,
        roster_version=version,
        slice=index,
        inputs=tuple(
            wire.ReduceInput(peer=peer, share=share, digest=digest)
            for peer, share, digest in inputs
        ),
    )
