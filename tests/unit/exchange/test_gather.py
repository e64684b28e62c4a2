"""Fetching the updates of a round, from a reducer in a script and from a real one."""

import asyncio
import resource
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace
from tests.unit.exchange.cast import (
    ROUND,
    SIZES,
    A,
    B,
    encoded,
    job,
    reduce,
    reducer_of,
    reducers,
    serve,
)
from tests.unit.memory import Network, pair
from tests.unit.virtual import now, run

from atoll.errors import BadBlobError, ConnectionLost, PeerError, ProtocolError, RunError
from atoll.exchange.blobs import BlobStore
from atoll.exchange.codec import CODECS
from atoll.exchange.gather import UNCHECKED, WAIT_S, Wanted, gather_from
from atoll.exchange.links import ANSWER_S, SLOWEST_BYTES_PER_S, Links
from atoll.ids import digest_of
from atoll.net import wire

WANTED = Wanted(round=ROUND, roster_version=7, codec=CODECS["int8"], sizes=SIZES)
SLICES = [encoded(5, index) for index in range(len(SIZES))]  # digest and payload


def update(index):
    """Return how a reducer announces the update of this slice."""
    digest, payload = SLICES[index]
    return wire.Update(slice=index, digest=digest, num_bytes=len(payload))


class Gathering:
    """B asks A; what it has gathered, and put into its store."""

    def __init__(self, path, indices, *, wanted):
        self.network = Network()
        self.blobs = BlobStore(path)
        self.gathered = []
        self.links = Links(self.network.transport(B))
        ours, self.theirs = pair(self.network, B, A)
        self.task = asyncio.create_task(
            gather_from(
                ours,
                indices,
                wanted=wanted,
                blobs=self.blobs,
                links=self.links,
                gathered=self.keep,
            )
        )

    def keep(self, index, digest, payload):
        self.gathered.append((index, digest, bytes(payload)))  # its memory is used again

    async def answer(self, *indices):
        for index in indices:
            await self.theirs.send(update(index), SLICES[index][1])


@asynccontextmanager
async def gathering(path, indices=(0, 1), *, wanted=WANTED):
    gathering = Gathering(path, indices, wanted=wanted)
    try:
        yield gathering
    finally:
        gathering.task.cancel()
        await asyncio.gather(gathering.task, return_exceptions=True)


@pytest.mark.parametrize("indices", [(0, 1), (1, 0), (1,)])
def test_updates_are_kept_in_the_store_as_they_come(tmp_path, indices):
    async def main():
        async with gathering(tmp_path, indices) as one:
            assert await one.theirs.receive() == wire.FetchUpdates(
                round=ROUND, roster_version=7, slices=indices, seconds=WAIT_S
            )
            await one.answer(*indices)
            await one.task
            assert one.gathered == [(k, *SLICES[k]) for k in indices]
            for digest, payload in (SLICES[k] for k in indices):
                assert one.blobs.get(digest) == payload

    run(main())


def test_the_first_is_there_while_the_second_is_not_formed_yet(tmp_path):
    async def main():
        async with gathering(tmp_path) as one:
            await one.answer(0)
            await asyncio.sleep(WAIT_S - 1)
            assert [index for index, *_ in one.gathered] == [0]
            await one.answer(1)
            await one.task

    run(main())


@pytest.mark.parametrize("formed", [[], [0]])
def test_what_is_not_formed_in_time_is_missing_and_no_error(tmp_path, formed):
    async def main():
        async with gathering(tmp_path) as one:
            await one.answer(*formed)
            await one.theirs.send(wire.Missing())
            await one.task
            assert [index for index, *_ in one.gathered] == formed
            assert one.blobs.has(SLICES[0][0]) == (0 in formed)

    run(main())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (update(1), "an answer out of place: Update"),  # slice 0 was to be the first
        (wire.Taken(slice=0), "an answer out of place: Taken"),
        (wire.Blob(digest=SLICES[0][0], num_bytes=3), "an answer out of place: Blob"),
    ],
)
def test_another_answer_is_a_protocol_error(tmp_path, answer, error):
    async def main():
        async with gathering(tmp_path) as one:
            await one.theirs.send(answer)
            with pytest.raises(ProtocolError, match=error):
                await one.task
            assert one.gathered == []

    run(main())


@pytest.mark.parametrize("num_bytes", [2**31, 1])
def test_an_update_of_another_size_is_as_bad_as_one_that_does_not_decode(tmp_path, num_bytes):
    """So the host hears of its reducer."""

    async def main():
        async with gathering(tmp_path) as one:
            await one.theirs.send(replace(update(0), num_bytes=num_bytes))
            with pytest.raises(BadBlobError, match=f"the update of slice 0 has {num_bytes} bytes"):
                await one.task
            assert one.gathered == []

    run(main())


def test_a_refusal_comes_with_its_reason(tmp_path):
    async def main():
        async with gathering(tmp_path) as one:
            await one.theirs.send(wire.Refused(reason="no", hint="because"))
            with pytest.raises(PeerError, match="refused: no"):
                await one.task

    run(main())


def test_a_damaged_update_is_not_kept(tmp_path):
    async def main():
        async with gathering(tmp_path) as one:
            one.network.damaging.add(A)
            await one.answer(0)
            with pytest.raises(BadBlobError):
                await one.task
            assert one.gathered == []
            assert list(tmp_path.iterdir()) == []

    run(main())


def test_an_update_that_does_not_decode_is_not_kept(tmp_path):
    """It is what was announced, and of the right size; its scales are no numbers."""

    async def main():
        payload = b"\xff" * len(SLICES[0][1])
        announced = replace(update(0), digest=digest_of(payload))
        async with gathering(tmp_path) as one:
            await one.theirs.send(announced, payload)
            with pytest.raises(BadBlobError):
                await one.task
            assert list(tmp_path.iterdir()) == []

    run(main())


def test_what_came_before_a_damaged_update_is_there(tmp_path):
    async def main():
        async with gathering(tmp_path) as one:
            await one.answer(0)
            await asyncio.sleep(1)
            one.network.damaging.add(A)
            await one.answer(1)
            with pytest.raises(BadBlobError):
                await one.task
            assert [index for index, *_ in one.gathered] == [0]
            assert one.blobs.has(SLICES[0][0])

    run(main())


@pytest.mark.parametrize(
    ("announces", "seconds"),
    [
        (False, ANSWER_S + WAIT_S),  # it may wait so long itself
        (True, ANSWER_S + len(SLICES[0][1]) / SLOWEST_BYTES_PER_S),
    ],
)
def test_a_reducer_that_falls_silent_is_lost(tmp_path, announces, seconds):
    async def main():
        async with gathering(tmp_path) as one:
            if announces:
                await one.theirs.send(update(0))
            with pytest.raises(ConnectionLost, match="does not answer"):
                await one.task
            one.links.end_round()
            assert one.links.down.estimate is None, "what did not come says nothing of the line"
            return now()

    assert run(main()) == pytest.approx(seconds)


def test_a_reducer_that_is_cut_off_is_lost(tmp_path):
    async def main():
        async with gathering(tmp_path) as one:
            await one.theirs.receive()
            one.network.cut(A)
            with pytest.raises(ConnectionLost):
                await one.task

    run(main())


def test_a_full_disk_is_our_own_trouble(tmp_path):
    async def main():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        async with gathering(tmp_path) as one:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            try:
                await one.answer(0)
                with pytest.raises(RunError, match="cannot write"):
                    await one.task
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert one.gathered == []

    run(main())


def test_more_updates_than_are_checked_at_once(tmp_path):
    many = 3 * UNCHECKED
    slices = [encoded(seed) for seed in range(many)]
    wanted = Wanted(round=ROUND, roster_version=7, codec=CODECS["int8"], sizes=(SIZES[0],) * many)

    async def main():
        async with gathering(tmp_path, range(many), wanted=wanted) as one:
            for index, (digest, payload) in enumerate(slices):
                announced = wire.Update(slice=index, digest=digest, num_bytes=len(payload))
                await one.theirs.send(announced, payload)
            await one.task
            assert [digest for _, digest, _ in one.gathered] == [digest for digest, _ in slices]

    run(main())


def test_from_a_real_reducer_as_it_forms_them(tmp_path):
    async def main():
        network = Network()
        all_, told = reducers(tmp_path / "source")
        source = reducer_of(all_, ROUND)
        theirs = await serve(network, A, all_)
        ours = Links(network.transport(B))
        blobs = BlobStore(tmp_path / "ours")
        gathered = []

        async def gather(indices):
            async with ours.to(wire.Address(peer=A, host="h", port=1)) as connection:
                await gather_from(
                    connection,
                    indices,
                    wanted=WANTED,
                    blobs=blobs,
                    links=ours,
                    gathered=lambda index, digest, payload: gathered.append((index, digest)),
                )

        async def form(index):
            digest, payload = SLICES[index]
            await source.take(B, index, digest, payload)
            await reduce(source, job((B, 1.0, digest), index=index, version=7))

        gathering = asyncio.create_task(gather([0, 1]))
        await form(0)
        await asyncio.sleep(1)
        assert [index for index, *_ in gathered] == [0]
        await gathering  # slice 1 is not formed in time
        assert now() == pytest.approx(WAIT_S)
        await form(1)
        await gather([1])
        assert [digest for _, digest in gathered] == [m.digest for m in told.reduced()]
        assert all(blobs.has(digest) for _, digest in gathered)
        assert network.num_dialled == 1, "the connection is good for another request"
        assert theirs.traffic.updates_sent == sum(len(blobs.get(digest)) for _, digest in gathered)
        await ours.close()
        await network.listeners[1].close()

    run(main())
