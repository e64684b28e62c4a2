"""Partial sums: what is added up in regions, and above them."""

import asyncio

import numpy as np
import pytest
from msgspec.structs import replace
from tests.unit.exchange.cast import ROUND, A, B, C, encoded, job, reduce, reducer
from tests.unit.virtual import run

from atoll.exchange.codec import CODECS
from atoll.exchange.reduce import reduce_slice
from atoll.exchange.sizes import partial_codec
from atoll.exchange.values import LARGEST
from atoll.ids import digest_of
from atoll.net import wire

SHARES = {A: 0.5, B: 0.25, C: 0.25}
INT8 = {peer: encoded(seed) for seed, peer in enumerate(SHARES)}
WHOLE = job(*((peer, SHARES[peer], INT8[peer][0]) for peer in SHARES))
ADDRESS = wire.Address(peer=A, host="h", port=1)


def region(*peers, group, index=0):
    """Return the job to add up what these contribute."""
    named = job(*((peer, SHARES[peer], INT8[peer][0]) for peer in peers), index=index)
    return replace(named, group=group, parent=ADDRESS)


def above(*groups, group=None):
    parts = tuple(wire.Part(group=below, reducer=ADDRESS) for below in groups)
    return replace(job(), parts=parts, group=group)


async def formed(directory, order, contributors=()):
    """Return what a reducer that has these contributions forms, and what it says of it."""
    one, told = reducer(directory)
    for peer in contributors:
        await one.take(peer, 0, *INT8[peer])
    await reduce(one, order)
    digest, payload = await one.sum((1, order.group, 0))
    assert digest == digest_of(payload)
    return payload, told.reduced()[0]


# bf16 rounds to nearest only once, also from double: now and then a sum in between is its
# neighbour. (One region alone has no partial sum, so that is no matter there.)
@pytest.mark.parametrize("update_codec", sorted(CODECS.keys() - {"bf16"}))
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seed", range(3))
def test_one_region_is_the_update_bit_for_bit(codec, update_codec, seed):
    rng = np.random.default_rng(seed)
    size, partial = 10_000, CODECS[partial_codec(update_codec)]
    inputs = [
        (CODECS[codec].encode(1e-3 * rng.standard_t(2, size=size)), share)
        for share in (0.5, 0.3, 0.2)
    ]
    sizes = {"num_values": size}
    update = reduce_slice(inputs, codec=CODECS[codec], update_codec=CODECS[update_codec], **sizes)
    alone = reduce_slice(inputs, codec=CODECS[codec], update_codec=partial, **sizes)
    assert update == reduce_slice(
        [(alone, 1.0)], codec=partial, update_codec=CODECS[update_codec], **sizes
    )


def test_with_fp64_nothing_is_lost_between():
    values = [np.random.default_rng(seed).normal(size=100) for seed in range(4)]
    fp64 = CODECS["fp64"]
    sums = [
        reduce_slice(
            [(fp64.encode(one), 0.25) for one in half],
            codec=fp64,
            update_codec=CODECS[partial_codec("fp64")],
            num_values=100,
        )
        for half in (values[:2], values[2:])
    ]
    mean = reduce_slice([(one, 1.0) for one in sums], codec=fp64, update_codec=fp64, num_values=100)
    assert np.abs(fp64.decode(mean, 100) - np.mean(values, axis=0)).max() < 1e-15


def test_regions_and_a_root_form_the_mean_and_each_names_what_it_is_made_of(tmp_path):
    async def main():
        first, said = await formed(tmp_path / "0", region(A, B, group=0), (A, B))
        assert (said.group, said.slice, said.parts) == (0, 0, ())
        second, _ = await formed(tmp_path / "1", region(C, group=1), (C,))
        again, _ = await formed(tmp_path / "2", region(A, B, group=0), (B, C, A))
        assert first == again, "whoever forms it, and whatever else is there"

        root, told = reducer(tmp_path / "root")
        forming = asyncio.create_task(reduce(root, above(0, 1)))
        root.take_in((1, 1, 0), digest_of(second), second)
        await asyncio.sleep(1)
        assert not told.reduced(), "one is missing"
        root.take_in((1, 0, 0), digest_of(first), first)
        await forming
        (said,) = told.reduced()
        assert (said.group, said.parts) == (None, (digest_of(first), digest_of(second)))

        whole, _ = await formed(tmp_path / "whole", WHOLE, SHARES)
        _, update = await root.sum((1, None, 0))
        error = CODECS["int8"].decode(update, 300) - CODECS["int8"].decode(whole, 300)
        assert np.abs(error).max() <= np.abs(CODECS["int8"].decode(whole, 300)).max() / 127 + 1e-9

    run(main())


def test_of_parts_that_are_too_large_together_the_largest_is_formed_anew(tmp_path):
    """Each by itself may travel, so whoever formed them is not found out before."""
    parts = [CODECS["fp32"].encode(np.full(300, size * LARGEST)) for size in (0.1, 0.6, 0.5)]

    async def main():
        root, told = reducer(tmp_path)
        for group, part in enumerate(parts):
            root.take_in((1, group, 0), digest_of(part), part)
        assert await root.form(above(0, 1, 2)) == 1
        assert told.reduced() == []
        assert [root.has_fetched((1, group, 0)) for group in range(3)] == [True, False, True]

        honest = CODECS["fp32"].encode(np.zeros(300))
        root.take_in((1, 1, 0), digest_of(honest), honest)
        assert await root.form(above(0, 1, 2)) is None
        (said,) = told.reduced()
        assert said.parts[1] == digest_of(honest)

    run(main())


def test_partial_sums_are_in_memory_and_updates_on_disk(tmp_path):
    async def main():
        _, partial = await formed(tmp_path / "0", region(A, group=0), (A,))
        _, update = await formed(tmp_path / "1", WHOLE, SHARES)
        assert not (tmp_path / "0" / partial.digest).exists()
        assert (tmp_path / "1" / update.digest).exists()

    run(main())


def test_what_is_asked_for_once_more_is_told_once_more_and_not_formed_again(tmp_path):
    async def main():
        root, told = reducer(tmp_path)
        part = CODECS["fp32"].encode(np.zeros(300))
        root.take_in((1, 0, 0), digest_of(part), part)
        assert not root.tells_again(above(0))
        await reduce(root, above(0))
        assert root.tells_again(above(0))
        first, again = told.reduced()
        assert first == again
        assert root.has_fetched((1, 0, 0)), "it is used: nobody needs to fetch it again"

    run(main())


def test_an_update_that_was_fetched_is_there_for_the_region(tmp_path):
    async def main():
        one, _ = reducer(tmp_path)
        digest, payload = INT8[A]
        waiting = asyncio.create_task(one.sum((1, None, 0)))
        assert not one.has_fetched((1, None, 0))
        one.take_in((1, None, 0), digest, payload)
        assert await waiting == (digest, payload)
        assert await one.kept(roster_version=1, index=0) == digest
        one.close()
        one.take_in((1, None, 1), digest, payload)
        assert await one.sum((1, None, 1)) is None, "the round is over"

    run(main())


def test_a_round_that_ends_ends_the_wait_for_parts(tmp_path):
    async def main():
        root, told = reducer(tmp_path)
        forming = asyncio.create_task(reduce(root, above(0, 1)))
        await asyncio.sleep(1)
        root.close()
        await forming
        assert told.reduced() == []
        assert root.round_id == ROUND

    run(main())
