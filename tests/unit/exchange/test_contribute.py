import asyncio

import numpy as np
import pytest
from tests.unit.exchange.cast import BOUNDS, ROUND, A, B, reducer
from tests.unit.memory import Network
from tests.unit.virtual import run

from atoll.errors import BadUpdateError, PeerError
from atoll.exchange import fp64
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import (
    EncodedContribution,
    deliver_to,
    deliver_to_self,
    encode_slice,
)
from atoll.exchange.links import Links
from atoll.exchange.serve import BlobServer
from atoll.ids import digest_of
from atoll.net import wire

RNG = np.random.default_rng(0)
GLOBAL_N, LOCAL_N = RNG.normal(size=(2, 500)).astype(np.float32)
INT8 = CODECS["int8"]


async def encoded_contribution(codec=INT8):
    contribution = EncodedContribution(ROUND, len(BOUNDS))
    digests = await contribution.encode(codec, global_N=GLOBAL_N, local_N=LOCAL_N, slices=BOUNDS)
    return contribution, digests


def test_the_pseudo_gradient_is_old_minus_new_without_rounding():
    payload = encode_slice(fp64, global_N=GLOBAL_N, local_N=LOCAL_N)
    expected = GLOBAL_N.astype(np.float64) - LOCAL_N.astype(np.float64)
    assert np.array_equal(fp64.decode(payload, 500), expected)


def test_the_first_slices_are_there_before_the_others():
    async def main():
        contribution = EncodedContribution(ROUND, len(BOUNDS))
        last = asyncio.create_task(contribution.slice(1))
        encoding = asyncio.create_task(
            contribution.encode(INT8, global_N=GLOBAL_N, local_N=LOCAL_N, slices=BOUNDS)
        )
        digest, payload = await contribution.slice(0)
        assert payload == encode_slice(INT8, global_N=GLOBAL_N[:300], local_N=LOCAL_N[:300])
        assert digest == digest_of(payload)
        assert await encoding == (digest, (await last)[0])

    run(main())


def test_who_stops_waiting_for_a_slice_does_not_stop_the_others():
    async def main():
        contribution = EncodedContribution(ROUND, len(BOUNDS))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await contribution.slice(0)
        await contribution.encode(INT8, global_N=GLOBAL_N, local_N=LOCAL_N, slices=BOUNDS)
        assert await contribution.slice(0)

    run(main())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_of_our_own_is_not_shared(bad):
    async def main():
        local_N = LOCAL_N.copy()
        local_N[400] = bad
        contribution = EncodedContribution(ROUND, len(BOUNDS))
        with pytest.raises(BadUpdateError, match="1 of 200 values"):
            await contribution.encode(INT8, global_N=GLOBAL_N, local_N=local_N, slices=BOUNDS)

    run(main())


def test_slices_are_brought_to_their_reducer_and_a_second_time_cost_nothing(tmp_path):
    async def main():
        network = Network()
        to, told = reducer(tmp_path)
        server = BlobServer(reducer=to, locate=[])
        listener = await network.transport(B).listen(server.serve, host="h", port=1)
        links = Links(network.transport(A))
        contribution, digests = await encoded_contribution()
        sent = []
        for _ in range(2):
            await deliver_to(
                wire.Address(peer=B, host="h", port=1),
                range(2),
                contribution=contribution,
                links=links,
                delivered=lambda index, num_bytes: sent.append((index, num_bytes)),
            )
        sizes = [INT8.encoded_bytes(stop - start) for start, stop in BOUNDS]
        assert sent == [(0, sizes[0]), (1, sizes[1]), (0, 0), (1, 0)]
        assert [(m.contributor, m.slice, m.digest) for m in told.delivered()] == [
            (A, 0, digests[0]),
            (A, 1, digests[1]),
        ] * 2
        await links.close()
        await listener.close()

    run(main())


def test_a_reducer_that_is_cut_off_in_the_middle_leaves_what_it_has(tmp_path):
    async def main():
        network = Network()
        to, _ = reducer(tmp_path)
        server = BlobServer(reducer=to, locate=[])
        listener = await network.transport(B).listen(server.serve, host="h", port=1)
        contribution, digests = await encoded_contribution()
        sent = []

        def delivered(index, num_bytes):
            sent.append(index)
            network.cut(A)
            network.unreachable.add(1)

        with pytest.raises(PeerError):
            await deliver_to(
                wire.Address(peer=B, host="h", port=1),
                range(2),
                contribution=contribution,
                links=Links(network.transport(A)),
                delivered=delivered,
            )
        assert sent == [0]
        assert to.has(A, 0, digests[0])
        assert not to.has(A, 1, digests[1])
        await listener.close()

    run(main())


def test_our_own_reducer_gets_ours_without_a_network(tmp_path):
    async def main():
        own, told = reducer(tmp_path)
        contribution, digests = await encoded_contribution()
        sent = []
        for _ in range(2):
            await deliver_to_self(
                range(2),
                contribution=contribution,
                reducer=own,
                peer=A,
                delivered=lambda index, num_bytes: sent.append((index, num_bytes)),
            )
        assert sent == [(0, 0), (1, 0)] * 2
        assert [m.digest for m in told.delivered()] == [*digests, *digests]

    run(main())
