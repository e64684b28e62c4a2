"""A reducer: it takes in the slices that are its own, and forms their updates.

    take     check size, finiteness and scales; tell the host, with the squared norm
    reduce   total = sum of share * decoded, in roster order, in double; encode once; keep it

The result is a function of the roster alone. Whoever reduces gets the same bytes, so a second
reducer can take over, and anyone who has the contributions can check.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from atoll.errors import BadBlobError
from atoll.exchange.blobs import BlobStore
from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import CODECS, Codec
from atoll.ids import Buffer, Digest, PeerId, RoundId, digest_of
from atoll.net import wire

T = TypeVar("T")
# Of one slice of one contributor, which may have had to train again: what rosters name, and one
# more; two at least, since the one before may be what the host names at this moment.
MIN_VERSIONS = 2


def reduce_slice(
    inputs: Sequence[tuple[Buffer, float]], *, codec: Codec, update_codec: Codec, num_values: int
) -> bytes:
    """Return the encoded mean of these (encoded slice, share) pairs, added in their order."""
    total_N = np.zeros(num_values)
    for payload, share in inputs:
        codec.accumulate_(total_N, payload, share=share)
    return update_codec.encode(total_N)


@dataclass(frozen=True, slots=True)
class Means:
    """What a reducer works with: where updates go, whom it tells, whose memory it uses."""

    blobs: BlobStore
    tell_host: Callable[[wire.Message], object]
    buffers: Buffers


class Reducers:
    """The reducers of this member, one for each round that may be open: `in_flight` at most."""

    def __init__(self, means: Means, *, in_flight: int = 1) -> None:
        self._means = means
        self._in_flight = in_flight
        self._open: dict[RoundId, Reducer] = {}

    def of(self, round_id: RoundId) -> "Reducer | None":
        """Return that of the round, if the round is open here."""
        return self._open.get(round_id)

    def follow(
        self, plan: wire.Plan, *, own: Sequence[wire.Reduction], sizes: Sequence[int]
    ) -> None:
        """Reduce what the plan gives us, of slices of so many values; forget rounds that are over.

        Those are the ones that must be committed before this round can be open.
        """
        for round_id in [r for r in self._open if r <= plan.round - self._in_flight]:
            self._open.pop(round_id).close()
        if plan.round not in self._open:
            self._open[plan.round] = Reducer(plan, self._means, sizes=sizes)
        self._open[plan.round].own = {k for run in own for k in range(run.start, run.stop)}


class Reducer:
    """What this member has taken in, and formed, for one round. `own` are its slices."""

    def __init__(self, plan: wire.Plan, means: Means, *, sizes: Sequence[int]) -> None:
        self.round_id = plan.round
        self.own: set[int] = set()
        self.codec = CODECS[plan.codec]
        self._update_codec = CODECS[plan.update_codec]
        self._sizes = sizes
        self._blobs = means.blobs
        self._buffers = means.buffers
        self._tell_host = means.tell_host
        # Of each contributor and slice: the versions that are here, with their squared norms.
        self._taken: dict[PeerId, dict[int, dict[Digest, tuple[Buffer, float]]]] = {}
        self._named: set[Digest] = set()  # by a roster: these are needed until the commit
        self._updates: dict[tuple[int, int], tuple[Digest, bytes]] = {}
        self._kept: dict[tuple[int, int], Digest] = {}
        self._over = asyncio.Event()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Forget all: the round is over. Whoever waits for something of it, waits no longer."""
        self._over.set()
        # Whoever still reads a slice drops what comes of it.
        for slices in self._taken.values():
            for versions in slices.values():
                for payload, _ in versions.values():
                    if isinstance(payload, bytearray):
                        self._buffers.give(payload)
        self._taken = {}
        self._notify()

    def expected_bytes(self, index: int) -> int | None:
        """Return how long an encoded slice is, or None if it is none of ours."""
        if index not in self.own or index >= len(self._sizes):
            return None
        return self.codec.encoded_bytes(self._sizes[index])

    def held_of(self, peer: PeerId) -> tuple[wire.NamedSlice, ...]:
        """Return the slices of a contributor that are here."""
        return tuple(
            wire.NamedSlice(slice=index, digest=digest)
            for index, versions in sorted(self._taken.get(peer, {}).items())
            if index in self.own
            for digest in versions
        )

    def has(self, peer: PeerId, index: int, digest: Digest) -> bool:
        return digest in self._taken.get(peer, {}).get(index, {})

    def confirm(self, peer: PeerId, index: int, digest: Digest) -> None:
        """Tell the host (again: it may be another process now) that this slice is here."""
        norm = self._taken[peer][index][digest][1]
        self._tell_host(
            wire.Delivered(
                round=self.round_id,
                contributor=peer,
                slice=index,
                digest=digest,
                squared_norm=norm,
            )
        )

    async def take(self, peer: PeerId, index: int, digest: Digest, payload: Buffer) -> None:
        """Keep a slice of a contributor, if it is sound. A bytearray is ours from now on.

        Raises:
            BadBlobError: it is not the blob that was announced, or does not decode.
        """
        norm = await asyncio.to_thread(
            _check, payload, digest, codec=self.codec, num_values=self._sizes[index]
        )
        if self._over.is_set():
            return  # it came too late
        versions = self._taken.setdefault(peer, {}).setdefault(index, {})
        unnamed = [old for old in versions if old not in self._named]
        if unnamed and len(versions) >= MIN_VERSIONS:
            del versions[unnamed[0]]
        versions[digest] = (payload, norm)
        self.confirm(peer, index, digest)
        self._notify()

    async def reduce(self, job: wire.Reduce) -> None:
        """Form the update of a slice once all its inputs are here; keep it; tell the host.

        Raises:
            RunError: the disk is full.
        """
        if await self.has_inputs(job):
            await self.form(job)

    async def has_inputs(self, job: wire.Reduce) -> bool:
        """Wait for all inputs of an update; return whether they are here before the round ends."""
        if job.slice >= len(self._sizes):
            return False
        self._named.update(one.digest for one in job.inputs)
        for one in job.inputs:  # what is named stays, so each is looked for until it is here
            while not self.has(one.peer, job.slice, one.digest):
                await self._next_change()
                if self._over.is_set():
                    return False
        return True

    async def form(self, job: wire.Reduce) -> None:
        """Form the update of a slice, whose inputs are here; keep it; tell the host."""
        inputs = [(self._taken[i.peer][job.slice][i.digest][0], i.share) for i in job.inputs]
        payload = await asyncio.to_thread(
            reduce_slice,
            inputs,
            codec=self.codec,
            update_codec=self._update_codec,
            num_values=self._sizes[job.slice],
        )
        digest = digest_of(payload)
        if self._over.is_set():
            return
        self._updates[job.roster_version, job.slice] = digest, payload
        self._notify()  # it may be on its way to the others while it goes to our disk
        await asyncio.to_thread(self._blobs.put, digest, payload)
        if self._over.is_set():
            return
        self._kept[job.roster_version, job.slice] = digest
        self._notify()
        self._tell_host(
            wire.Reduced(
                round=job.round,
                roster_version=job.roster_version,
                slice=job.slice,
                digest=digest,
            )
        )

    async def update(self, *, roster_version: int, index: int) -> tuple[Digest, bytes] | None:
        """Wait for the update of a slice; None if the round is over."""
        return await self._there(lambda: self._updates.get((roster_version, index)))

    async def kept(self, *, roster_version: int, index: int) -> Digest | None:
        """Wait until the update of a slice is in our store; None as for `update`."""
        return await self._there(lambda: self._kept.get((roster_version, index)))

    async def _there(self, look: Callable[[], T | None]) -> T | None:
        """Return what `look` finds, now or after a change, for as long as the round is open."""
        while not self._over.is_set():
            if (found := look()) is not None:
                return found
            await self._next_change()
        return None

    async def _next_change(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        # Whoever waits now is woken; whoever comes later waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()


def _check(payload: Buffer, digest: Digest, *, codec: Codec, num_values: int) -> float:
    """Return the squared norm of a slice, or raise BadBlobError."""
    if digest_of(payload) != digest:
        raise BadBlobError("a slice is not what was announced")
    return codec.check(payload, num_values)
