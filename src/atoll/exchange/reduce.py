"""A reducer: it takes in the slices that are its own, and forms their updates.

    take     check size, finiteness and scales; tell the host, with the squared norm
    reduce   total = sum of share * decoded, in roster order, in double; encode once; keep it

Where the roster is divided (tree.py), some add up a region's contributions, in double, and round
the partial sum to fp32 (of fp64 updates: not at all); others add up these, and the root encodes.

The result is a function of the roster alone. Whoever reduces gets the same bytes, so a second
reducer can take over, and anyone who has the contributions can check.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from atoll.errors import BadBlobError, BadUpdateError
from atoll.exchange.blobs import BlobStore
from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import CODECS, Codec
from atoll.exchange.sizes import partial_codec
from atoll.exchange.tasks import SHORT_BYTES, at_once_or_beside
from atoll.exchange.values import zeros
from atoll.ids import Buffer, Digest, PeerId, RoundId, digest_of
from atoll.net import wire

T = TypeVar("T")
SumName: TypeAlias = tuple[int, int | None, int]  # roster version, group (None: update), slice
# Of one slice of one contributor, which may have had to train again: what rosters name, and one
# more; two at least, since the one before may be what the host names at this moment.
MIN_VERSIONS = 2
SHORT_VALUES = 2**21  # of all inputs and the sum: are added up in about a millisecond


def reduce_slice(
    inputs: Sequence[tuple[Buffer, float]],
    *,
    codec: Codec,
    update_codec: Codec,
    num_values: int,
    room_N: NDArray[np.float64] | None = None,
) -> bytearray:
    """Return the encoded mean of these (encoded slice, share) pairs, added in order in `room_N`."""
    total_N = zeros(num_values, room_N)
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
        self,
        plan: wire.Plan,
        *,
        own: Sequence[wire.Reduction | wire.Run],
        sizes: Sequence[int],
    ) -> None:
        """Take in what the plan gives us, of slices of so many values; forget rounds that are over.

        Those are the ones that must be committed before this round can be open.
        """
        for round_id in [r for r in self._open if r <= plan.round - self._in_flight]:
            self._open.pop(round_id).close()
        if plan.round not in self._open:
            self._open[plan.round] = Reducer(plan, self._means, sizes=sizes)
        self._open[plan.round].own = {k for run in own for k in range(run.start, run.stop)}


class Reducer:
    """What this member has taken in, and formed, for one round.

    `own` are the slices that it takes in. What is formed is named by roster version, group (None:
    the update itself) and slice.
    """

    def __init__(self, plan: wire.Plan, means: Means, *, sizes: Sequence[int]) -> None:
        self.round_id = plan.round
        self.own: set[int] = set()
        self.codec = CODECS[plan.codec]
        self.update_codec = CODECS[plan.update_codec]
        self.partial_codec = CODECS[partial_codec(plan.update_codec)]
        self.sizes = tuple(sizes)
        self._blobs = means.blobs
        self._buffers = means.buffers
        self._tell_host = means.tell_host
        # Of each contributor and slice: the versions that are here, with their squared norms.
        self._taken: dict[PeerId, dict[int, dict[Digest, tuple[Buffer, float]]]] = {}
        self._named: set[Digest] = set()  # by a roster: these are needed until the commit
        self._parts: dict[SumName, tuple[Digest, Buffer]] = {}  # formed by others, and not used yet
        self._used: set[SumName] = set()  # parts
        self._sums: dict[SumName, tuple[Digest, Buffer]] = {}
        self._told: dict[SumName, wire.Reduced] = {}
        self._kept: dict[tuple[int, int], Digest] = {}
        self._over = asyncio.Event()
        # By slice: who waits for one is not woken by all others, of which there are many.
        self._changed: dict[int, asyncio.Event] = {}

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
        self._parts = {}
        for index in list(self._changed):
            self._notify(index)

    async def over(self) -> None:
        """Return when the round is over."""
        await self._over.wait()

    def expected_bytes(self, index: int) -> int | None:
        """Return how long an encoded slice is, or None if it is none of ours."""
        if index not in self.own or index >= len(self.sizes):
            return None
        return self.codec.encoded_bytes(self.sizes[index])

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

    def copy_of(self, payload: bytearray) -> bytearray:
        """Return a copy of a payload, for `take`."""
        copy = self._buffers.take(len(payload))
        copy[:] = payload
        return copy

    async def take(self, peer: PeerId, index: int, digest: Digest, payload: Buffer) -> None:
        """Keep a slice of a contributor, if it is sound. A bytearray is ours from now on.

        Raises:
            BadBlobError: it is not the blob that was announced, or does not decode.
        """
        work = partial(_check, payload, digest, codec=self.codec, num_values=self.sizes[index])
        norm = await at_once_or_beside(work, is_short=len(payload) <= SHORT_BYTES)
        if self._over.is_set():
            return  # it came too late
        versions = self._taken.setdefault(peer, {}).setdefault(index, {})
        unnamed = [old for old in versions if old not in self._named]
        if unnamed and len(versions) >= MIN_VERSIONS:
            del versions[unnamed[0]]
        versions[digest] = (payload, norm)
        self.confirm(peer, index, digest)
        self._notify(index)

    async def has_inputs(self, job: wire.Reduce) -> bool:
        """Wait for all inputs of a job; return whether they are here before the round ends."""
        if job.slice >= len(self.sizes):
            return False
        self._named.update(one.digest for one in job.inputs)
        for one in job.inputs:  # what is named stays, so each is looked for until it is here
            while not self.has(one.peer, job.slice, one.digest):
                if self._over.is_set():
                    return False
                await self._next_change(job.slice)
        for part in job.parts:
            while (job.roster_version, part.group, job.slice) not in self._parts:
                if self._over.is_set():
                    return False
                await self._next_change(job.slice)
        return True

    async def form(self, job: wire.Reduce) -> int | None:
        """Form an update, or a partial sum, whose inputs are here; keep it; tell the host.

        Return None, or the group below whose part makes the sum too large: the largest of them.
        Shares add up to 1, so no honest parts do. It is dropped, to be formed anew by another.

        Raises:
            RunError: the disk is full.
        """
        name: SumName = job.roster_version, job.group, job.slice
        names = [(job.roster_version, part.group, job.slice) for part in job.parts]
        parts = [self._parts[part] for part in names]
        inputs: list[tuple[Buffer, float]] = [(payload, 1.0) for _, payload in parts]
        inputs += [(self._taken[i.peer][job.slice][i.digest][0], i.share) for i in job.inputs]
        codec = self.partial_codec if parts else self.codec
        size = self.sizes[job.slice]
        try:
            work = partial(
                _named_sum,
                inputs,
                codec=codec,
                update_codec=self.update_codec if job.group is None else self.partial_codec,
                num_values=size,
                buffers=self._buffers,
            )
            is_short = (len(inputs) + 1) * size <= SHORT_VALUES
            digest, payload = await at_once_or_beside(work, is_short=is_short)
        except BadUpdateError:
            if not parts:
                raise
            norms = [codec.check(payload, size) for _, payload in parts]
            largest = norms.index(max(norms))
            self._parts.pop(names[largest], None)  # None: the round is over, and all are gone
            return job.parts[largest].group
        if self._over.is_set():
            return None
        for part in names:
            del self._parts[part]
        self._used.update(names)
        self._sums[name] = digest, payload
        self._notify(job.slice)  # it may be on its way to the others while it goes to our disk
        if job.group is None:
            await self._blobs.keep_soon(digest, payload)
            if self._over.is_set():
                return None
            self._kept[job.roster_version, job.slice] = digest
            self._notify(job.slice)
        self._told[name] = wire.Reduced(
            round=job.round,
            roster_version=job.roster_version,
            slice=job.slice,
            digest=digest,
            group=job.group,
            parts=tuple(digest for digest, _ in parts),
        )
        self._tell_host(self._told[name])
        return None

    def tells_again(self, job: wire.Reduce) -> bool:
        """Tell the host once more, if this is formed already; return whether it is."""
        told = self._told.get((job.roster_version, job.group, job.slice))
        if told is not None:
            self._tell_host(told)
        return told is not None

    def has_fetched(self, name: SumName) -> bool:
        """Return whether what others form is here, or was."""
        here: Collection[SumName] = self._sums if name[1] is None else self._parts
        return name in here or name in self._used

    def take_in(self, name: SumName, digest: Digest, payload: Buffer) -> None:
        """Keep what another reducer has formed: a part, or an update that is in our store by now.

        The update is for those who turn to us for it.
        """
        if self._over.is_set():
            return
        if name[1] is None:
            self._sums[name] = digest, payload
            self._kept[name[0], name[2]] = digest
        else:
            self._parts[name] = digest, payload
        self._notify(name[2])

    async def sum(self, name: SumName) -> tuple[Digest, Buffer] | None:
        """Wait for what is formed here, or taken in for others; None if the round is over."""
        return await self._there(name[2], lambda: self._sums.get(name))

    async def kept(self, *, roster_version: int, index: int) -> Digest | None:
        """Wait until the update of a slice is in our store; None as for `update`."""
        return await self._there(index, lambda: self._kept.get((roster_version, index)))

    async def _there(self, index: int, look: Callable[[], T | None]) -> T | None:
        """Return what `look` finds, now or after a change of the slice, while the round is open."""
        # Nobody waits for what there cannot be: any member may ask for any slice.
        while index < len(self.sizes) and not self._over.is_set():
            if (found := look()) is not None:
                return found
            await self._next_change(index)
        return None

    async def _next_change(self, index: int) -> None:
        await self._changed.setdefault(index, asyncio.Event()).wait()

    def _notify(self, index: int) -> None:
        # Whoever waits now is woken; whoever comes later waits for the next change.
        if (changed := self._changed.pop(index, None)) is not None:
            changed.set()


def _named_sum(
    inputs: Sequence[tuple[Buffer, float]],
    *,
    codec: Codec,
    update_codec: Codec,
    num_values: int,
    buffers: Buffers,
) -> tuple[Digest, bytearray]:
    """Return what `reduce_slice` forms, and its digest."""
    room = buffers.take(num_values * np.dtype(np.float64).itemsize)
    try:
        payload = reduce_slice(
            inputs,
            codec=codec,
            update_codec=update_codec,
            num_values=num_values,
            room_N=np.frombuffer(room, np.float64),
        )
    finally:
        buffers.give(room)
    return digest_of(payload), payload


def _check(payload: Buffer, digest: Digest, *, codec: Codec, num_values: int) -> float:
    """Return the squared norm of a slice, or raise BadBlobError."""
    if digest_of(payload) != digest:
        raise BadBlobError("a slice is not what was announced")
    return codec.check(payload, num_values)
