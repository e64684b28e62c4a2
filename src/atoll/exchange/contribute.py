"""A contribution: our pseudo-gradient, encoded slice by slice, on its way to the reducers.

    delta = global - local          old minus new: the outer optimizer descends along a gradient

The first slices are on the wire while the others are still encoded, and none waits for the answer
to the one before it. The encoded slices are kept until the commit, so that a reducer that takes
over gets the same bytes. Their memory is then used again for the next contribution.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import Codec
from atoll.exchange.links import Links, Patience, unexpected
from atoll.exchange.reduce import Reducer
from atoll.exchange.tasks import each_in_thread, running, together
from atoll.ids import Digest, PeerId, RoundId, digest_of
from atoll.net import wire
from atoll.net.transport import Connection

Slices = Sequence[tuple[int, int]]
ENCODERS = 2  # slices that are encoded at once
Delivered = Callable[[int], None]  # the index of a slice


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """What the pseudo-gradient of a fragment of N values is made of.

    For codecs with error feedback, `residual_N` is what earlier encodings have dropped, and
    `pending_N` is where that goes which is dropped when this one is committed.
    """

    global_N: NDArray[np.float32]
    local_N: NDArray[np.float32]
    residual_N: NDArray[np.float32] | None = None
    pending_N: NDArray[np.float32] | None = None

    def part(self, start: int, stop: int) -> "Vectors":
        parts = (
            None if values_N is None else values_N[start:stop]
            for values_N in (self.residual_N, self.pending_N)
        )
        return Vectors(self.global_N[start:stop], self.local_N[start:stop], *parts)


def encode_slice(
    codec: Codec, vectors: Vectors, into: bytearray | None = None
) -> tuple[Digest, bytearray]:
    """Return the encoded pseudo-gradient of one slice (`into`, if it is there), and its digest.

    Raises:
        BadUpdateError: a local parameter is a NaN or infinite.
    """
    global_N, local_N, residual_N = vectors.global_N, vectors.local_N, vectors.residual_N
    payload = codec.encode_difference(global_N, local_N, residual_N, into=into)
    if vectors.pending_N is not None and residual_N is not None:
        np.copyto(vectors.pending_N, residual_N)
        codec.leave_(vectors.pending_N, payload, global_N=global_N, local_N=local_N)
    return digest_of(payload), payload


class EncodedContribution:
    """The encoded slices of one contribution, each there as soon as it is encoded."""

    def __init__(self, round_id: RoundId, slices: Slices, buffers: Buffers) -> None:
        self.round_id = round_id
        self._bounds = slices
        self._buffers = buffers
        loop = asyncio.get_running_loop()
        self._slices: list[asyncio.Future[tuple[Digest, bytearray]]] = [
            loop.create_future() for _ in slices
        ]
        self._brought_to: dict[PeerId | None, set[int]] = defaultdict(set)

    def is_new_to(self, reducer: PeerId | None, indices: Collection[int]) -> bool:
        """Return whether none of these slices was ever brought there; they are, from now on."""
        brought = self._brought_to[reducer]
        is_new = brought.isdisjoint(indices)
        brought.update(indices)
        return is_new

    async def encode(
        self, codec: Codec, vectors: Vectors, *, order: Sequence[int]
    ) -> tuple[Digest, ...]:
        """Encode all slices, in this order, and return their digests.

        Raises:
            BadUpdateError: our own parameters must not be shared.
        """

        def encoded(index: int) -> tuple[Digest, bytearray]:
            start, stop = self._bounds[index]
            room = self._buffers.take(codec.encoded_bytes(stop - start))
            return encode_slice(codec, vectors.part(start, stop), room)

        def keep(index: int, slice_: tuple[Digest, bytearray]) -> None:
            self._slices[index].set_result(slice_)

        todo = iter(list(order))
        encoders = range(min(ENCODERS, len(order)))
        await together(*(each_in_thread(encoded, todo, done=keep) for _ in encoders))
        return tuple([future.result()[0] for future in self._slices])

    async def slice(self, index: int) -> tuple[Digest, bytearray]:
        return await asyncio.shield(self._slices[index])

    def close(self) -> None:
        """Give all slices up: nobody encodes, or reads one, any more."""
        for slice_ in self._slices:
            if slice_.done() and not slice_.cancelled():
                self._buffers.give(slice_.result()[1])


async def deliver_to(
    connection: Connection,
    indices: Sequence[int],
    *,
    contribution: EncodedContribution,
    links: Links,
    delivered: Delivered,
) -> None:
    """Bring these slices to the reducer at the other end; tell `delivered` of each that is there.

    The first time it can have none of them, so none waits for a word from there: a round trip less.

    Raises:
        PeerError: the reducer is gone, or refuses a slice.
    """
    held: set[tuple[int, Digest]] = set()
    answered = asyncio.Event()
    untaken: dict[int, int] = {}  # slices that were sent, or begun, and their bytes
    changed = asyncio.Event()

    async def hear() -> None:
        answer = await connection.receive()
        if not isinstance(answer, wire.Holding):
            raise unexpected(answer)
        held.update((named.slice, named.digest) for named in answer.slices)
        answered.set()
        changed.set()
        while True:
            answer = await connection.receive()
            if not isinstance(answer, wire.Taken) or untaken.pop(answer.slice, None) is None:
                raise unexpected(answer)
            delivered(answer.slice)
            changed.set()

    async def send() -> None:
        for index in indices:
            digest, payload = await contribution.slice(index)
            if (index, digest) in held:
                delivered(index)
                continue
            size = untaken[index] = len(payload)
            head = wire.Slice(
                round=contribution.round_id, slice=index, digest=digest, num_bytes=size
            )
            await _send(connection, head, payload, links=links)

    async with Patience(0):
        await connection.send(wire.Bring(round=contribution.round_id))
    async with running(hear()):
        if not contribution.is_new_to(connection.peer, indices):
            async with Patience(0):
                await answered.wait()
        with links.uplink.flow(connection):
            await send()
        while untaken or not answered.is_set():
            changed.clear()
            async with Patience(sum(untaken.values())):
                await changed.wait()


async def _send(
    connection: Connection, head: wire.Slice, payload: bytearray, *, links: Links
) -> None:
    async with Patience(head.num_bytes):
        with links.sending(head.num_bytes):
            await connection.send(head, payload)
    # Not when it is taken: the commit of a round may come before the word of that.
    links.traffic.contributions_sent += head.num_bytes


async def deliver_to_self(
    indices: Sequence[int],
    *,
    contribution: EncodedContribution,
    reducer: Reducer,
    peer: PeerId,
    delivered: Delivered,
) -> None:
    """Hand these slices to our own reducer, which gets copies: what it takes is its own."""
    for index in indices:
        digest, payload = await contribution.slice(index)
        if reducer.has(peer, index, digest):
            reducer.confirm(peer, index, digest)
        else:
            await reducer.take(peer, index, digest, reducer.copy_of(payload))
        delivered(index)
