"""The serving side, as somebody sees it who dials a member."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace
from tests.unit.exchange.cast import (
    ROUND,
    A,
    B,
    C,
    encoded,
    job,
    open_round,
    reduce,
    reducer_of,
    reducers,
    server,
)
from tests.unit.memory import Network, pair
from tests.unit.virtual import now, run

from atoll.errors import BadBlobError, PeerError
from atoll.exchange.blobs import TOGETHER_S, BlobStore
from atoll.exchange.joiners import AT_ONCE
from atoll.exchange.links import ANSWER_S, SLOWEST_BYTES_PER_S, Links
from atoll.exchange.serve import IDLE_S, UNCHECKED, BlobServer
from atoll.exchange.uplink import JOINERS_ALONE
from atoll.ids import PeerId, RoundId, digest_of
from atoll.net import wire
from atoll.traffic import Traffic

DIGEST, PAYLOAD = encoded(1)
SLICE = wire.Slice(round=ROUND, slice=0, digest=DIGEST, num_bytes=len(PAYLOAD))
BLOB = wire.Blob(digest=DIGEST, num_bytes=len(PAYLOAD))
BRING = wire.Bring(round=ROUND)
UPDATES = wire.FetchUpdates(round=ROUND, roster_version=1, slices=(0,), seconds=20)


class Served:
    """What A sees of B's server; `ended` is how serving A came to its end."""

    def __init__(self, tmp_path, *, dialler=A, sizes=(300, 200)):
        self.network = Network()
        self.reducers, self.told = reducers(tmp_path / "blobs", sizes=sizes)
        self.reducer = reducer_of(self.reducers, ROUND)
        self.file = tmp_path / "file"
        self.file.write_bytes(b"before" + PAYLOAD + b"after")
        self.places = {DIGEST: (self.file, 6, len(PAYLOAD))}
        self.links = Links(self.network.transport(B))
        self.blobs = BlobStore(tmp_path / "updates")
        self.server = BlobServer(
            reducers=self.reducers,
            updates=self.blobs.locate,
            states=[lambda _: None, lambda digest: self.places.get(digest)],
            links=self.links,
        )
        self.serving = []
        self.connection = self.dial(dialler)
        self.ended = self.serving[0]

    def dial(self, dialler):
        ours, theirs = pair(self.network, dialler, B)
        self.serving.append(asyncio.create_task(self.server.serve(theirs)))
        return ours

    async def hear(self):
        """Return the next answer, with the bytes that it announces, if any."""
        answer = await self.connection.receive()
        if isinstance(answer, wire.Blob | wire.Update):
            return answer, await self.connection.receive_payload(answer.num_bytes)
        return answer

    async def ask(self, message, payload=b""):
        await self.connection.send(message, payload)
        return await self.hear()

    async def form(self, index=0, *, seed=1):
        """Let the update of a slice be formed; return its digest and its bytes."""
        digest, payload = encoded(seed, index)
        await self.reducer.take(A, index, digest, payload)
        await reduce(self.reducer, job((A, 1.0, digest), index=index))
        return await self.reducer.sum((1, None, index))


@asynccontextmanager
async def served(tmp_path, **options):
    server = Served(tmp_path, **options)
    try:
        yield server
    finally:
        await server.connection.close()
        for serving in server.serving:
            serving.cancel()
        await asyncio.gather(*server.serving, return_exceptions=True)


def test_a_stranger_gets_nothing(tmp_path):
    async def main():
        async with served(tmp_path, dialler=None) as server:
            assert isinstance(await server.connection.receive(), wire.Refused)
            await server.ended

    run(main())


# --- blobs ---------------------------------------------------------------------------------------


def test_a_blob_is_sent_from_where_it_lies(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(wire.Fetch(digest=DIGEST)) == (BLOB, PAYLOAD)
            assert await server.ask(wire.Fetch(digest=DIGEST)) == (BLOB, PAYLOAD)
            assert await server.ask(wire.Fetch(digest=digest_of(b"?"))) == wire.Missing()
            assert server.links.traffic == Traffic(state_sent=2 * len(PAYLOAD))

    run(main())


def test_an_update_for_one_that_missed_it_counts_as_an_update(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            digest, payload = encoded(5)
            server.blobs.put(digest, payload)
            answer, sent = await server.ask(wire.Fetch(digest=digest))
            assert (answer.digest, sent) == (digest, payload)
            assert await server.ask(wire.Fetch(digest=digest_of(b"?"))) == wire.Missing()
            assert server.links.traffic == Traffic(updates_sent=len(payload))

    run(main())


def test_who_finds_all_places_taken_is_told_to_come_again(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            joiners = [server.dial(PeerId(f"{number:032x}")) for number in range(AT_ONCE + 1)]
            for joiner in joiners:
                await joiner.send(wire.Fetch(digest=DIGEST))
            for joiner in joiners[:-1]:
                assert await joiner.receive() == BLOB
            assert await joiners[-1].receive() == wire.Missing(busy=True)
            await joiners[-1].send(wire.Fetch(digest=digest_of(b"?")))
            assert await joiners[-1].receive() == wire.Missing()
            server.links.end_round()
            assert server.links.up.estimate is None, "what joiners take teaches nothing of our line"

    run(main())


@pytest.mark.parametrize("pruned", [True, False])
def test_a_blob_that_was_pruned_or_cut_meanwhile_is_missing(tmp_path, pruned):
    async def main():
        async with served(tmp_path) as server:
            if pruned:
                server.file.unlink()
            else:
                server.file.write_bytes(b"before" + PAYLOAD[:-1])
            assert await server.ask(wire.Fetch(digest=DIGEST)) == wire.Missing()

    run(main())


# --- slices --------------------------------------------------------------------------------------


def test_a_slice_is_taken_in_and_named_to_who_asks_what_is_here(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(BRING) == wire.Holding(slices=())
            assert await server.ask(SLICE, PAYLOAD) == wire.Taken(slice=0)
            assert server.reducer.has(A, 0, DIGEST)
            assert len(server.told.delivered()) == 1
            named = wire.NamedSlice(slice=0, digest=DIGEST)
            assert await server.ask(BRING) == wire.Holding(slices=(named,))
            assert len(server.told.delivered()) == 2  # the host may have been away
            assert server.links.traffic == Traffic(contributions_received=len(PAYLOAD))

    run(main())


def test_a_contributor_is_told_of_its_own_slices_alone(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            await server.ask(SLICE, PAYLOAD)
            other = server.dial(C)
            await other.send(BRING)
            assert await other.receive() == wire.Holding(slices=())
            assert not server.reducer.has(C, 0, DIGEST)

    run(main())


def test_many_slices_come_without_waiting_for_answers_and_each_has_one(tmp_path):
    async def main():
        many = 3 * UNCHECKED
        async with served(tmp_path, sizes=[300] * many) as server:
            slices = [encoded(seed) for seed in range(many)]

            async def bring():
                for index, (digest, payload) in enumerate(slices):
                    await server.connection.send(
                        replace(SLICE, slice=index, digest=digest), payload
                    )

            bringing = asyncio.create_task(bring())
            taken = [(await server.connection.receive()).slice for _ in range(many)]
            await bringing
            assert sorted(taken) == list(range(many))
            assert all(server.reducer.has(A, k, slices[k][0]) for k in range(many))

    run(main())


def test_while_slices_are_checked_only_a_few_more_are_taken_in(tmp_path):
    class Slow:
        """The reducer of any round, which checks for ever."""

        checking = 0

        def of(self, round_id):
            return self

        def expected_bytes(self, index):
            return len(PAYLOAD)

        async def take(self, *_):
            self.checking += 1
            await asyncio.sleep(1000)

    async def main():
        async with served(tmp_path) as one:
            slow = Slow()
            ours, theirs = pair(one.network, A, B)
            serving = asyncio.create_task(server(slow, one.links).serve(theirs))
            for _ in range(UNCHECKED + 4):
                await ours.send(SLICE, PAYLOAD)
            await asyncio.sleep(1)
            assert slow.checking == UNCHECKED
            assert one.links.traffic.contributions_received == (UNCHECKED + 1) * len(PAYLOAD)
            ours.cut()
            await serving

    run(main())


def test_what_is_brought_before_the_round_is_open_here_is_asked_for_later(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(replace(BRING, round=RoundId(4))) == wire.Missing()
            assert await server.ask(BRING) == wire.Holding(slices=())

    run(main())


def test_a_slice_of_another_round_ends_the_connection(tmp_path):
    """The rounds changed while it was on its way; its bytes are not read."""

    async def main():
        async with served(tmp_path) as server:
            await server.ask(BRING)
            open_round(server.reducers, ROUND + 1)
            assert await server.ask(SLICE, PAYLOAD) == wire.Missing()
            with pytest.raises(PeerError, match="round 3, which is not open"):
                await server.ended
            assert server.links.traffic == Traffic()

    run(main())


@pytest.mark.parametrize(
    "slice_",
    [
        replace(SLICE, num_bytes=len(PAYLOAD) - 1),
        replace(SLICE, num_bytes=2**31),
        replace(SLICE, slice=1),
        replace(SLICE, slice=99),
    ],
)
def test_a_slice_of_another_size_is_refused_before_its_bytes_are_read(tmp_path, slice_):
    async def main():
        async with served(tmp_path) as server:
            refused = await server.ask(slice_)
            assert "another size" in refused.reason
            with pytest.raises(BadBlobError):
                await server.ended

    run(main())


def test_bytes_that_were_not_announced_are_refused(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            refused = await server.ask(SLICE, PAYLOAD[:-1] + b"?")
            assert "not what was announced" in refused.reason
            with pytest.raises(BadBlobError):
                await server.ended
            assert not server.told

    run(main())


def test_one_that_announces_and_then_sends_nothing_is_given_up(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            await server.connection.send(SLICE)
            await server.ended
            return now()

    assert run(main()) == pytest.approx(ANSWER_S + len(PAYLOAD) / SLOWEST_BYTES_PER_S)


# --- updates -------------------------------------------------------------------------------------


def test_updates_are_sent_in_their_order_each_as_soon_as_it_is_there(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            asking = asyncio.create_task(server.ask(replace(UPDATES, slices=(1, 0))))
            await asyncio.sleep(5)
            first = await server.form(0)
            await asyncio.sleep(5)
            assert not asking.done()
            second = await server.form(1)
            update, payload = await asking
            assert (update.slice, update.digest, payload) == (1, *second)
            update, payload = await server.hear()
            assert (update.slice, update.digest, payload) == (0, *first)
            assert now() == pytest.approx(10 + 2 * TOGETHER_S)
            await server.ask(BRING)
            assert server.links.traffic == Traffic(updates_sent=len(first[1]) + len(second[1]))

    run(main())


@pytest.mark.parametrize(("seconds", "waited"), [(0.0, 0.0), (20.0, 20.0)])
def test_an_update_that_does_not_come_in_time_is_missing(tmp_path, seconds, waited):
    async def main():
        async with served(tmp_path) as server:
            await server.form(1)
            began_at = now()
            request = replace(UPDATES, slices=(1, 0), seconds=seconds)
            update, _ = await server.ask(request)
            assert update.slice == 1
            assert await server.hear() == wire.Missing()
            return now() - began_at

    assert run(main()) == pytest.approx(waited)


@pytest.mark.parametrize("stale", [{"round": RoundId(2)}, {"roster_version": 2, "seconds": 0}])
def test_an_update_of_another_round_or_roster_is_missing_at_once(tmp_path, stale):
    async def main():
        async with served(tmp_path) as server:
            await server.form()
            began_at = now()
            assert await server.ask(replace(UPDATES, **stale)) == wire.Missing()
            return now() - began_at

    assert run(main()) == 0


def test_a_request_for_updates_that_are_not_formed_yet_takes_nothing_of_the_line(tmp_path):
    async def main():
        rate = 2**20
        async with served(tmp_path) as server:
            began_s = server.links.up.begin(0.0)
            server.links.up.end(began_s, now=1.0, num_bytes=rate)
            server.links.end_round()
            joiner = server.dial(C)
            ends = [end for end in server.network.connections if end.owner == B]
            await server.connection.send(UPDATES)
            await joiner.send(wire.Fetch(digest=DIGEST))
            await joiner.receive()
            await joiner.receive_payload(len(PAYLOAD))
            assert [end.paced for end in ends] == [None, JOINERS_ALONE * rate]
            await server.form()
            await server.hear()
            assert ends[0].paced is None, "a member has what joiners leave"

    run(main())


# --- the end -------------------------------------------------------------------------------------


def test_what_is_no_request_is_refused(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            refused = await server.ask(wire.Taken(slice=0))
            assert refused.reason == "Taken is no request to a member"
            with pytest.raises(PeerError, match="no request"):
                await server.ended

    run(main())


def test_a_connection_that_breaks_is_the_end_of_it(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            await asyncio.sleep(0)
            server.connection.cut()
            await server.ended

    run(main())


def test_one_that_asks_nothing_for_long_is_not_kept(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            await server.ended
            return now()

    assert run(main()) == IDLE_S
