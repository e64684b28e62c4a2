"""Members that the tests of this folder share: a reducer, and slices that are brought to it."""

from pathlib import Path

import numpy as np

from atoll.exchange.blobs import BlobStore
from atoll.exchange.codec import CODECS
from atoll.exchange.reduce import Reducer
from atoll.ids import Digest, PeerId, RoundId, digest_of
from atoll.net import wire

A, B, C, D = (PeerId(letter * 32) for letter in "abcd")
BOUNDS = ((0, 300), (300, 500))
ROUND = RoundId(3)


class Told(list[wire.Message]):
    """What a reducer told the host, by kind."""

    def delivered(self) -> list[wire.Delivered]:
        return [message for message in self if isinstance(message, wire.Delivered)]

    def reduced(self) -> list[wire.Reduced]:
        return [message for message in self if isinstance(message, wire.Reduced)]


def reducer(path: Path, *, codec: str = "int8") -> tuple[Reducer, Told]:
    """Return a reducer with round 3 open, and what it tells the host."""
    told = Told()
    reducer = Reducer(slices=BOUNDS, blobs=BlobStore(path), tell_host=told.append)
    open_round(reducer, ROUND, codec=codec)
    return reducer, told


def open_round(
    reducer: Reducer, round_id: int, *, codec: str = "int8", own: tuple[int, int] = (0, 2)
) -> None:
    """Let the reducer follow a plan that gives it the slices `own[0]` to `own[1] - 1`."""
    address = wire.Address(peer=D, host="h", port=1)
    reductions = (wire.Reduction(reducer=address, start=own[0], stop=own[1]),)
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
    reducer.follow(plan, own=reductions)


def values(seed: int, index: int = 0) -> np.ndarray:
    start, stop = BOUNDS[index]
    return np.random.default_rng(seed).normal(size=stop - start)


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
