"""A contribution on its way: encoded slice by slice, and brought to reducers real and scripted."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
from tests.unit.exchange.cast import (
    BOUNDS,
    ROUND,
    A,
    B,
    open_round,
    reduce,
    reducer,
    reducer_of,
    reducers,
    serve,
)
from tests.unit.memory import Network, pair
from tests.unit.virtual import now, run

from atoll.errors import BadUpdateError, ConnectionLost, PeerError, ProtocolError
from atoll.exchange import fp64
from atoll.exchange.blobs import BlobStore
from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import (
    EncodedContribution,
    Vectors,
    deliver_to,
    deliver_to_self,
    encode_slice,
)
from atoll.exchange.links import ANSWER_S, SLOWEST_BYTES_PER_S, Links
from atoll.exchange.reduce import Means, Reducers, reduce_slice
from atoll.ids import RoundId, digest_of
from atoll.net import wire

RNG = np.random.default_rng(0)
GLOBAL_N, LOCAL_N = RNG.normal(size=(2, 500)).astype(np.float32)
VECTORS = Vectors(GLOBAL_N, LOCAL_N)
INT8 = CODECS["int8"]
MANY = tuple((start, start + 10) for start in range(0, 500, 10))  # more than a queue holds


async def encoded_contribution(bounds=BOUNDS):
    contribution = EncodedContribution(ROUND, bounds, Buffers())
    digests = await contribution.encode(INT8, VECTORS, order=range(len(bounds)))
    return contribution, digests


async def payloads_of(contribution, *, bounds=BOUNDS):
    return [(await contribution.slice(index))[1] for index in range(len(bounds))]


# --- encoding ------------------------------------------------------------------------------------


def test_the_pseudo_gradient_is_old_minus_new_without_rounding():
    digest, payload = encode_slice(fp64, VECTORS)
    expected = GLOBAL_N.astype(np.float64) - LOCAL_N.astype(np.float64)
    assert np.array_equal(fp64.decode(payload, 500), expected)
    assert digest == digest_of(payload)


def test_the_first_slices_are_there_before_the_others():
    async def main():
        contribution = EncodedContribution(ROUND, BOUNDS, Buffers())
        last = asyncio.create_task(contribution.slice(1))
        encoding = asyncio.create_task(contribution.encode(INT8, VECTORS, order=(0, 1)))
        first = await contribution.slice(0)
        assert first == encode_slice(INT8, VECTORS.part(0, 300))
        assert await encoding == (first[0], (await last)[0])
        assert await payloads_of(contribution) == [first[1], (await last)[1]]

    run(main())


def test_slices_are_encoded_in_the_order_in_which_they_are_needed():
    async def main():
        contribution = EncodedContribution(ROUND, MANY, Buffers())
        order = [*range(30, 50), *range(30)]
        there = []

        async def note(index):
            await contribution.slice(index)
            there.append(index)

        async with asyncio.TaskGroup() as group:
            for index in range(len(MANY)):
                group.create_task(note(index))
            digests = await contribution.encode(INT8, VECTORS, order=order)
        assert there == order
        assert digests == tuple([(await contribution.slice(k))[0] for k in range(len(MANY))])

    run(main())


def test_the_next_contribution_has_the_memory_of_the_one_before_it():
    async def main():
        buffers = Buffers()
        rooms = []
        for round_id in (1, 2):
            contribution = EncodedContribution(RoundId(round_id), BOUNDS, buffers)
            await contribution.encode(INT8, VECTORS, order=(0, 1))
            rooms.append({id(payload) for payload in await payloads_of(contribution)})
            contribution.close()
        assert rooms[0] == rooms[1]

    run(main())


def test_who_stops_waiting_for_a_slice_does_not_stop_the_others():
    async def main():
        contribution = EncodedContribution(ROUND, BOUNDS, Buffers())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await contribution.slice(0)
        await contribution.encode(INT8, VECTORS, order=range(2))
        assert await contribution.slice(0)

    run(main())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_of_our_own_is_not_shared(bad):
    async def main():
        local_N = LOCAL_N.copy()
        local_N[400] = bad
        contribution = EncodedContribution(ROUND, BOUNDS, Buffers())
        with pytest.raises(BadUpdateError, match="1 of 200 values"):
            await contribution.encode(INT8, Vectors(GLOBAL_N, local_N), order=range(2))

    run(main())


@pytest.mark.parametrize("name", ["int4", "sparse"])
def test_what_an_encoding_drops_is_pending_and_the_residual_is_as_before(name):
    codec = CODECS[name]
    residual_N = RNG.normal(size=500).astype(np.float32)
    before_N, pending_N = residual_N.copy(), np.full(500, np.nan, np.float32)
    vectors = Vectors(GLOBAL_N, LOCAL_N, residual_N, pending_N)

    async def main():
        contribution = EncodedContribution(ROUND, BOUNDS, Buffers())
        await contribution.encode(codec, vectors, order=(1, 0))
        return await payloads_of(contribution)

    payloads = run(main())
    decoded_N = np.concatenate(
        [codec.decode(p, stop - start) for p, (start, stop) in zip(payloads, BOUNDS, strict=True)]
    )
    meant_N = GLOBAL_N.astype(float) - LOCAL_N + codec.FEEDBACK * before_N.astype(float)
    assert np.array_equal(residual_N, before_N)
    np.testing.assert_allclose(pending_N, meant_N - decoded_N, rtol=1e-5, atol=1e-6)
    assert np.abs(pending_N).max() > 0.01


def test_a_codec_that_forgets_takes_no_residual():
    assert VECTORS.part(0, 300).residual_N is None
    assert VECTORS.part(0, 300).pending_N is None
    assert INT8.FEEDBACK is None


# --- on the way ----------------------------------------------------------------------------------


class Reducing:
    """The other end of a connection, from a script; what A has delivered to it."""

    def __init__(self, contribution, *, bounds=BOUNDS, links=None):
        self.contribution = contribution
        self.network = Network()
        self.ours, self.theirs = pair(self.network, A, B)
        self.links = links or Links(self.network.transport(A))
        self.delivered = []
        self.bringing = asyncio.create_task(self.bring(range(len(bounds))))

    async def bring(self, indices):
        await deliver_to(
            self.ours,
            indices,
            contribution=self.contribution,
            links=self.links,
            delivered=self.delivered.append,
        )

    async def hold(self, *slices):
        """Say what is here already."""
        assert await self.theirs.receive() == wire.Bring(round=ROUND)
        await self.theirs.send(wire.Holding(slices=slices))

    async def hear(self):
        """Return the next slice that arrives, with its bytes."""
        slice_ = await self.theirs.receive()
        assert isinstance(slice_, wire.Slice)
        payload = await self.theirs.receive_payload(slice_.num_bytes)
        assert digest_of(payload) == slice_.digest
        return slice_, payload


@asynccontextmanager
async def reducing(bounds=BOUNDS, *, is_encoded=True, is_new=True):
    contribution = EncodedContribution(ROUND, bounds, Buffers())
    if is_encoded:
        contribution, _ = await encoded_contribution(bounds)
    if not is_new:
        contribution.is_new_to(B, range(len(bounds)))
    other = Reducing(contribution, bounds=bounds)
    try:
        yield other
    finally:
        other.bringing.cancel()
        await asyncio.gather(other.bringing, return_exceptions=True)


def test_no_slice_waits_for_the_answer_to_the_one_before_it():
    """The reducer answers nothing until all have arrived, and then in another order."""

    async def main():
        async with reducing(MANY) as other:
            await other.hold()
            arrived = [await other.hear() for _ in MANY]
            assert [slice_.slice for slice_, _ in arrived] == list(range(len(MANY)))
            payloads = await payloads_of(other.contribution, bounds=MANY)
            assert [payload for _, payload in arrived] == payloads
            assert other.delivered == []
            assert not other.bringing.done()
            await asyncio.sleep(1)
            sent = other.links.traffic.contributions_sent
            assert sent == sum(map(len, payloads)), "also if the round ends before it is answered"
            for index in reversed(range(len(MANY))):
                await other.theirs.send(wire.Taken(slice=index))
            await other.bringing
            assert other.delivered == list(reversed(range(len(MANY))))
            assert other.links.traffic.contributions_sent == sent

    run(main())


def test_the_first_time_the_first_slice_does_not_wait_for_what_the_reducer_holds():
    async def main():
        async with reducing() as other:
            assert await other.theirs.receive() == wire.Bring(round=ROUND)
            arrived = [await other.hear() for _ in BOUNDS]
            assert [slice_.slice for slice_, _ in arrived] == [0, 1]
            await other.theirs.send(wire.Holding(slices=()))
            for index in range(2):
                await other.theirs.send(wire.Taken(slice=index))
            await other.bringing
            assert not other.contribution.is_new_to(B, [1])

    run(main())


def test_a_slice_that_is_taken_before_anything_was_said_is_an_error():
    async def main():
        async with reducing() as other:
            await other.theirs.receive()
            await other.hear()
            await other.theirs.send(wire.Taken(slice=0))
            with pytest.raises(PeerError):
                await other.bringing

    run(main())


def test_what_the_reducer_holds_is_not_sent_again_unless_it_is_another_version():
    async def main():
        async with reducing(is_new=False) as other:
            (digest, _), (_, payload) = [await other.contribution.slice(k) for k in range(2)]
            await other.hold(
                wire.NamedSlice(slice=0, digest=digest),
                wire.NamedSlice(slice=1, digest=digest_of(b"of a former life")),
                wire.NamedSlice(slice=1, digest=digest),  # of a slice, not of this one
            )
            slice_, arrived = await other.hear()
            assert (slice_.slice, arrived) == (1, payload)
            await other.theirs.send(wire.Taken(slice=1))
            await other.bringing
            assert other.delivered == [0, 1]
            assert other.links.traffic.contributions_sent == len(payload)

    run(main())


def test_a_refusal_in_the_middle_comes_with_its_reason():
    async def main():
        async with reducing() as other:
            await other.hold()
            await other.hear()
            await other.theirs.send(wire.Refused(reason="no", hint="because"))
            with pytest.raises(PeerError, match="refused: no") as caught:
                await other.bringing
            assert caught.value.hint == "because"
            assert other.delivered == []

    run(main())


@pytest.mark.parametrize(
    "answer", [wire.Taken(slice=1), wire.Taken(slice=77), wire.Missing(), wire.Holding(slices=())]
)
def test_an_answer_to_what_was_not_sent_is_a_protocol_error(answer):
    async def main():
        async with reducing(is_encoded=False) as other:  # so nothing is sent
            await other.hold()
            await other.theirs.send(answer)
            with pytest.raises(ProtocolError, match="out of place"):
                await other.bringing
            assert other.delivered == []

    run(main())


def test_a_slice_is_taken_once():
    async def main():
        async with reducing() as other:
            await other.hold()
            await other.hear()
            for _ in range(2):
                await other.theirs.send(wire.Taken(slice=0))
            with pytest.raises(ProtocolError, match="out of place"):
                await other.bringing
            assert other.delivered == [0]

    run(main())


@pytest.mark.parametrize("first", [wire.Missing(), wire.Taken(slice=0), wire.Refused(reason="no")])
def test_a_reducer_that_does_not_say_what_it_has_gets_nothing(first):
    async def main():
        async with reducing(is_new=False) as other:
            await other.theirs.receive()
            await other.theirs.send(first)
            with pytest.raises(PeerError):
                await other.bringing
            assert other.network.received[B] == len(wire.encode(wire.Bring(round=ROUND)))

    run(main())


@pytest.mark.parametrize("answers", [0, 1])
def test_a_reducer_that_falls_silent_is_lost(answers):
    async def main():
        async with reducing() as other:
            await other.hold()
            for index in range(2):
                await other.hear()
                if index < answers:
                    await other.theirs.send(wire.Taken(slice=index))
            with pytest.raises(ConnectionLost, match="does not answer"):
                await other.bringing
            payloads = await payloads_of(other.contribution)
            left = sum(len(payload) for payload in payloads[answers:])
            assert now() == pytest.approx(ANSWER_S + left / SLOWEST_BYTES_PER_S)

    run(main())


def test_who_waits_for_answers_holds_up_no_other_reducer():
    async def main():
        async with reducing() as one:
            await one.hold()
            for _ in BOUNDS:
                await one.hear()
            other = Reducing(one.contribution, links=one.links)
            await other.hold()
            for _ in BOUNDS:
                await other.hear()
            assert now() == 0
            for each in (one, other):
                for index in range(2):
                    await each.theirs.send(wire.Taken(slice=index))
                await each.bringing

    run(main())


# --- to real reducers ----------------------------------------------------------------------------


async def bring(network, contribution, *, delivered, indices=range(2)):
    """Bring the slices to B on a new connection; return the bytes of those that were sent."""
    links = Links(network.transport(A))
    connection = await network.transport(A).dial("h", 1, expect=B, timeout_s=1)
    await deliver_to(
        connection,
        indices,
        contribution=contribution,
        links=links,
        delivered=delivered,
    )
    await connection.close()
    return links.traffic.contributions_sent


def test_slices_are_brought_to_their_reducer_and_a_second_time_cost_nothing(tmp_path):
    async def main():
        network = Network()
        to, told = reducers(tmp_path)
        theirs = await serve(network, B, to)
        contribution, digests = await encoded_contribution()
        sent = []
        num_bytes = [await bring(network, contribution, delivered=sent.append) for _ in range(2)]
        all_bytes = sum(INT8.encoded_bytes(stop - start) for start, stop in BOUNDS)
        assert sent == [0, 1, 0, 1]
        assert num_bytes == [all_bytes, 0]
        assert theirs.traffic.contributions_received == all_bytes
        assert [(m.contributor, m.slice, m.digest) for m in told.delivered()] == [
            (A, 0, digests[0]),
            (A, 1, digests[1]),
        ] * 2
        await network.listeners[1].close()

    run(main())


def test_a_reducer_that_is_cut_off_in_the_middle_leaves_what_it_has(tmp_path):
    async def main():
        network = Network()
        all_, _ = reducers(tmp_path)
        to = reducer_of(all_, ROUND)
        await serve(network, B, all_)
        contribution, digests = await encoded_contribution()
        sent = []

        def delivered(index):
            sent.append(index)
            network.cut(A)

        last = asyncio.create_task(bring(network, contribution, delivered=delivered, indices=[0]))
        with pytest.raises(PeerError):
            await asyncio.gather(last, bring(network, contribution, delivered=delivered))
        await asyncio.gather(last, return_exceptions=True)
        assert to.has(A, 0, digests[0])
        num_bytes = await bring(network, contribution, delivered=sent.append)
        assert to.has(A, 1, digests[1])
        assert num_bytes <= INT8.encoded_bytes(200), "what is there is not sent again"
        assert sent[-2:] == [0, 1]
        await network.listeners[1].close()

    run(main())


def test_a_reducer_that_is_not_in_this_round_yet_is_asked_again_later(tmp_path):
    async def main():
        network = Network()
        to = Reducers(Means(BlobStore(tmp_path), lambda _: None, Buffers()))
        open_round(to, ROUND - 1)
        await serve(network, B, to)
        contribution, _ = await encoded_contribution()
        sent = []
        with pytest.raises(PeerError):
            await bring(network, contribution, delivered=sent.append)
        assert sent == []
        open_round(to, ROUND)
        await bring(network, contribution, delivered=sent.append)
        assert sent == [0, 1]
        await network.listeners[1].close()

    run(main())


def test_slices_are_on_the_wire_while_others_are_still_encoded(tmp_path):
    async def main():
        network = Network()
        to, told = reducers(tmp_path, sizes=[10] * len(MANY))
        await serve(network, B, to)
        contribution = EncodedContribution(ROUND, MANY, Buffers())
        every = range(len(MANY))
        encoding = asyncio.create_task(contribution.encode(INT8, VECTORS, order=every))
        was_encoding = []
        await bring(
            network,
            contribution,
            delivered=lambda *_: was_encoding.append(not encoding.done()),
            indices=every,
        )
        assert was_encoding[0]
        assert len(told.delivered()) == len(MANY)
        await network.listeners[1].close()

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
                delivered=sent.append,
            )
        assert sent == [0, 1] * 2
        assert [m.digest for m in told.delivered()] == [*digests, *digests]
        # Whoever contributed may use its memory again, and so may the reducer.
        payloads = await payloads_of(contribution)
        expected = reduce_slice(
            [(bytes(payloads[0]), 1.0)], codec=INT8, update_codec=INT8, num_values=300
        )
        payloads[0][:] = bytes(len(payloads[0]))
        named = wire.ReduceInput(peer=A, share=1.0, digest=digests[0])
        await reduce(own, wire.Reduce(round=ROUND, roster_version=1, slice=0, inputs=(named,)))
        assert await own.sum((1, None, 0)) == (digest_of(expected), expected)

    run(main())
