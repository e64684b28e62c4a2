"""A contribution: our pseudo-gradient, encoded slice by slice, on its way to the reducers.

    delta = global - local          old minus new: the outer optimizer descends along a gradient

The first slices are on the wire while the others are still encoded. The encoded slices are kept
until the commit, so that a reducer that takes over gets the same bytes.
"""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from atoll.exchange.codec import Codec
from atoll.exchange.links import Links, offer
from atoll.exchange.reduce import Reducer
from atoll.ids import Digest, PeerId, RoundId, digest_of
from atoll.net import wire

Slices = Sequence[tuple[int, int]]


def encode_slice(
    codec: Codec, *, global_N: NDArray[np.float32], local_N: NDArray[np.float32]
) -> bytes:
    """Return the encoded pseudo-gradient of one slice.

    The difference is taken in double, where it is exact but for values 2^29 times apart.

    Raises:
        BadUpdateError: a local parameter is a NaN or infinite.
    """
    return codec.encode(np.subtract(global_N, local_N, dtype=np.float64))


class EncodedContribution:
    """The encoded slices of one contribution, each there as soon as it is encoded."""

    def __init__(self, round_id: RoundId, num_slices: int) -> None:
        self.round_id = round_id
        loop = asyncio.get_running_loop()
        self._slices: list[asyncio.Future[tuple[Digest, bytes]]] = [
            loop.create_future() for _ in range(num_slices)
        ]

    async def encode(
        self,
        codec: Codec,
        *,
        global_N: NDArray[np.float32],
        local_N: NDArray[np.float32],
        slices: Slices,
    ) -> tuple[Digest, ...]:
        """Encode all slices in order, and return their digests.

        Raises:
            BadUpdateError: our own parameters must not be shared.
        """
        for future, (start, stop) in zip(self._slices, slices, strict=True):
            payload = await asyncio.to_thread(
                encode_slice, codec, global_N=global_N[start:stop], local_N=local_N[start:stop]
            )
            future.set_result((digest_of(payload), payload))
        return tuple([future.result()[0] for future in self._slices])

    async def slice(self, index: int) -> tuple[Digest, bytes]:
        return await asyncio.shield(self._slices[index])


async def deliver_to(
    reducer: wire.Address,
    indices: Sequence[int],
    *,
    contribution: EncodedContribution,
    links: Links,
    delivered: Callable[[int, int], None],
) -> None:
    """Bring these slices to their reducer; tell `delivered` the index and the bytes of each.

    Raises:
        PeerError: the reducer cannot be reached, or refuses a slice.
    """
    for index in indices:
        digest, payload = await contribution.slice(index)
        async with links.to(reducer) as connection:
            sent = await offer(
                connection,
                payload,
                round_id=contribution.round_id,
                index=index,
                digest=digest,
            )
        delivered(index, sent)


async def deliver_to_self(
    indices: Sequence[int],
    *,
    contribution: EncodedContribution,
    reducer: Reducer,
    peer: PeerId,
    delivered: Callable[[int, int], None],
) -> None:
    """Hand these slices to our own reducer."""
    for index in indices:
        digest, payload = await contribution.slice(index)
        if reducer.has(peer, index, digest):
            reducer.confirm(peer, index, digest)
        else:
            await reducer.take(peer, index, digest, payload)
        delivered(index, 0)
