import asyncio
import resource
from itertools import permutations

import numpy as np
import pytest
from msgspec.structs import replace
from tests.unit.exchange.cast import (
    ROUND,
    A,
    B,
    C,
    Told,
    encoded,
    job,
    open_round,
    reduce,
    reducer,
    reducer_of,
    reducers,
    values,
)
from tests.unit.virtual import run

from atoll.errors import BadBlobError, RunError
from atoll.exchange import fp64
from atoll.exchange.blobs import BlobStore
from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import CODECS
from atoll.exchange.reduce import MIN_VERSIONS, Means, Reducers, reduce_slice
from atoll.ids import RoundId, digest_of

SHARES = {A: 0.5, B: 0.25, C: 0.25}
SLICES = {peer: encoded(seed) for seed, peer in enumerate(SHARES)}
JOB = job(*((peer, SHARES[peer], SLICES[peer][0]) for peer in SHARES))


async def take(reducer, peer, *, index=0):
    digest, payload = SLICES[peer]
    await reducer.take(peer, index, digest, payload)


def test_the_update_is_the_weighted_mean():
    inputs = [(fp64.encode(values(seed)), share) for seed, share in enumerate(SHARES.values())]
    update = reduce_slice(inputs, codec=fp64, update_codec=fp64, num_values=300)
    expected = sum(share * values(seed) for seed, share in enumerate(SHARES.values()))
    assert np.array_equal(fp64.decode(update, 300), expected)


def test_whatever_the_order_of_arrival_every_reducer_forms_the_same_bytes(tmp_path):
    async def main():
        updates = set()
        for number, order in enumerate(permutations(SHARES)):
            one, told = reducer(tmp_path / str(number))
            reducing = asyncio.create_task(reduce(one, JOB))
            for peer in order:
                assert not told.reduced()
                await take(one, peer)
            await reducing
            (reduced,) = told.reduced()
            payload = (tmp_path / str(number) / reduced.digest).read_bytes()
            assert digest_of(payload) == reduced.digest
            updates.add(payload)
        (update,) = updates
        inputs = [(SLICES[peer][1], share) for peer, share in SHARES.items()]
        int8 = CODECS["int8"]
        assert update == reduce_slice(inputs, codec=int8, update_codec=int8, num_values=300)

    run(main())


def test_the_host_is_told_of_each_slice_with_its_norm(tmp_path):
    async def main():
        one, told = reducer(tmp_path, codec="fp64")
        digest, payload = encoded(5, 1, codec="fp64")
        await one.take(B, 1, digest, payload)
        one.confirm(B, 1, digest)
        (first, again) = told.delivered()
        assert first == again
        assert (first.round, first.contributor, first.slice, first.digest) == (ROUND, B, 1, digest)
        assert first.squared_norm == pytest.approx(np.square(values(5, 1)).sum())
        assert one.has(B, 1, digest)
        assert not one.has(A, 1, digest)
        assert not one.has(B, 0, digest)

    run(main())


def test_how_long_a_slice_is_follows_from_the_plan(tmp_path):
    one, _ = reducer(tmp_path, codec="fp32")
    assert [one.expected_bytes(k) for k in (-1, 0, 1, 2)] == [None, 1200, 800, None]
    other, _ = reducer(tmp_path, codec="bf16")
    assert other.expected_bytes(0) == 600


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("int8", encoded(0)[1][:-1]),
        ("int8", encoded(0)[1] + b"\0"),
        ("int8", b"\xff" * len(encoded(0)[1])),  # its scales are no numbers
        ("fp32", np.full(300, np.nan, np.float32).tobytes()),
        ("fp32", np.full(300, np.inf, np.float32).tobytes()),
        ("fp32", np.full(300, 3e38, np.float32).tobytes()),
    ],
)
def test_a_slice_that_does_not_decode_is_refused(tmp_path, codec, payload):
    async def main():
        one, told = reducer(tmp_path, codec=codec)
        with pytest.raises(BadBlobError):
            await one.take(A, 0, digest_of(payload), payload)
        assert not told
        assert not one.has(A, 0, digest_of(payload))

    run(main())


def test_a_slice_that_is_not_what_was_announced_is_refused(tmp_path):
    async def main():
        one, told = reducer(tmp_path)
        with pytest.raises(BadBlobError, match="not what was announced"):
            await one.take(A, 0, SLICES[A][0], SLICES[B][1])
        assert not told

    run(main())


@pytest.mark.parametrize("num_named", [0, 1, 2])
def test_of_many_versions_those_stay_that_rosters_name_and_one_more(tmp_path, num_named):
    async def main():
        one, told = reducer(tmp_path)
        versions = [encoded(seed) for seed in range(num_named + 4)]
        for number, version in enumerate(versions):
            await one.take(A, 0, *version)
            if number < num_named:
                await reduce(one, job((A, 1.0, version[0]), version=number))
        there = [digest for digest, _ in versions if one.has(A, 0, digest)]
        unnamed = 1 if num_named else MIN_VERSIONS
        kept = [*versions[:num_named], *versions[-unnamed:]]
        assert there == [digest for digest, _ in kept]
        assert len(told.delivered()) == len(versions)

    run(main())


@pytest.mark.parametrize("own", [(0, 1), (1, 2), (0, 2), (0, 9)])
def test_a_reducer_takes_only_what_the_plan_gives_it(tmp_path, own):
    all_, _ = reducers(tmp_path)
    open_round(all_, ROUND, own=own)
    one = reducer_of(all_, ROUND)
    expected = [k in range(*own) for k in range(2)]
    assert [one.expected_bytes(k) is not None for k in range(2)] == expected
    assert one.expected_bytes(2) is None


def test_another_plan_of_the_same_round_forgets_nothing(tmp_path):
    async def main():
        all_, _ = reducers(tmp_path)
        one = reducer_of(all_, ROUND)
        await take(one, A)
        open_round(all_, ROUND, own=(1, 2))
        assert all_.of(ROUND) is one
        assert one.has(A, 0, SLICES[A][0])

    run(main())


def test_of_two_versions_the_job_says_which(tmp_path):
    async def main():
        one, told = reducer(tmp_path, codec="fp64")
        for seed in (1, 2):
            await one.take(A, 0, *encoded(seed, codec="fp64"))
        digest, payload = encoded(1, codec="fp64")
        await reduce(one, job((A, 1.0, digest)))
        (reduced,) = told.reduced()
        assert reduced.digest == digest_of(payload)

    run(main())


def test_who_waits_for_an_update_gets_it_as_soon_as_it_is_formed(tmp_path):
    async def main():
        one, told = reducer(tmp_path)
        waiting = asyncio.create_task(one.sum((1, None, 0)))
        other = asyncio.create_task(one.sum((2, None, 0)))
        for peer in SHARES:
            await take(one, peer)
        await reduce(one, JOB)
        digest, payload = await waiting
        assert digest == told.reduced()[0].digest == digest_of(payload)
        assert await one.sum((1, None, 0)) == await waiting
        assert not other.done()
        one.close()
        assert await other is None
        assert await one.sum((1, None, 0)) is None

    run(main())


def test_a_job_for_no_slice_is_ignored(tmp_path):
    async def main():
        one, told = reducer(tmp_path)
        await reduce(one, replace(JOB, slice=2))
        assert not told

    run(main())


def test_nobody_waits_for_a_slice_that_there_is_not(tmp_path):
    async def main():
        one, _ = reducer(tmp_path)
        async with asyncio.timeout(1):
            assert await one.sum((1, None, 2)) is None
            assert await one.sum((1, 2**32 - 1, 2**32 - 1)) is None
            assert await one.kept(roster_version=1, index=2) is None

    run(main())


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_new_round_ends_the_one_that_is_over_by_then(tmp_path, in_flight):
    async def main():
        told = Told()
        all_ = Reducers(Means(BlobStore(tmp_path), told.append, Buffers()), in_flight=in_flight)
        open_round(all_, ROUND)
        one = reducer_of(all_, ROUND)
        reducing = asyncio.create_task(reduce(one, JOB))
        await take(one, A)
        for later in range(ROUND + 1, ROUND + in_flight):
            open_round(all_, later)
            assert all_.of(ROUND) is one
        open_round(all_, ROUND)  # planned anew, which ends no later one
        assert one.has(A, 0, SLICES[A][0])
        open_round(all_, ROUND + in_flight)
        assert all_.of(ROUND) is None
        await reducing
        assert not told.reduced()
        assert not one.has(A, 0, SLICES[A][0])

    run(main())


class Interrupted:
    """A codec and a store of blobs that let a new round begin while they are at work."""

    def __init__(self, meanwhile):
        self.meanwhile = meanwhile

    def check(self, payload, num_values):
        self.meanwhile()
        return 1.0

    async def keep_soon(self, digest, payload):
        self.meanwhile()


def test_a_slice_or_an_update_that_is_done_after_the_end_of_its_round_is_dropped():
    async def main():
        told = []

        def next_round():
            one.close()

        all_ = Reducers(Means(Interrupted(next_round), told.append, Buffers()))
        open_round(all_, ROUND)
        one = reducer_of(all_, ROUND)
        one.codec = Interrupted(next_round)
        await take(one, A)
        assert not told
        assert not one.has(A, 0, SLICES[A][0])

        open_round(all_, ROUND + 1)
        one = reducer_of(all_, RoundId(ROUND + 1))
        for peer in SHARES:
            await take(one, peer)
        told.clear()
        await reduce(one, replace(JOB, round=ROUND + 1))
        assert not told

    run(main())


def test_an_update_is_held_once_it_is_in_the_store(tmp_path):
    async def main():
        one, _ = reducer(tmp_path)
        key = {"roster_version": 1, "index": 0}
        waiting = asyncio.create_task(one.kept(**key))
        other = asyncio.create_task(one.kept(**{**key, "index": 1}))
        for peer in SHARES:
            await take(one, peer)
        assert not waiting.done()
        await reduce(one, JOB)
        digest, payload = await one.sum((1, None, 0))
        assert await waiting == await one.kept(**key) == digest
        assert (tmp_path / digest).read_bytes() == payload
        assert not other.done()
        one.close()
        assert await other is None
        assert await one.kept(**key) is None

    run(main())


def test_a_reducer_knows_which_slices_of_each_contributor_it_has(tmp_path):
    async def main():
        one, _ = reducer(tmp_path)
        slices = [(1, *encoded(1, 1)), (0, *encoded(1)), (0, *encoded(2))]
        for index, digest, payload in slices:
            await one.take(A, index, digest, payload)
        held = [(named.slice, named.digest) for named in one.held_of(A)]
        assert held == [(index, slices[k][1]) for k, index in ((1, 0), (2, 0), (0, 1))]
        assert one.held_of(B) == ()
        one.own = {1}
        assert [named.slice for named in one.held_of(A)] == [1]
        one.close()
        assert one.held_of(A) == ()

    run(main())


def test_a_round_of_another_fragment_has_slices_of_other_sizes(tmp_path):
    async def main():
        all_, told = reducers(tmp_path, codec="fp32")
        open_round(all_, ROUND + 1, codec="fp32", sizes=[7, 8, 9])
        one = reducer_of(all_, RoundId(ROUND + 1))
        assert [one.expected_bytes(k) for k in range(4)] == [28, 32, 36, None]
        payload = bytes(36)
        await one.take(A, 2, digest_of(payload), payload)
        await reduce(one, replace(job((A, 1.0, digest_of(payload)), index=2), round=ROUND + 1))
        assert told.reduced()[0].digest == digest_of(payload)

    run(main())


def test_a_full_disk_ends_the_reducer_with_a_run_error(tmp_path):
    async def main():
        one, told = reducer(tmp_path)
        kept = asyncio.create_task(one.kept(roster_version=1, index=0))
        for peer in SHARES:
            await take(one, peer)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(RunError):
                await reduce(one, JOB)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert await one.sum((1, None, 0))
        assert told.reduced() == []
        assert not kept.done()
        one.close()
        await kept

    run(main())
