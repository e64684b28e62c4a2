"""The serving side, as somebody sees it who dials a member."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace
from tests.unit.exchange.cast import ROUND, A, B, encoded, job, reducer
from tests.unit.memory import Network, pair
from tests.unit.virtual import now, run

from atoll.errors import BadBlobError, PeerError
from atoll.exchange.links import ANSWER_S
from atoll.exchange.serve import IDLE_S, BlobServer
from atoll.ids import RoundId, digest_of
from atoll.net import wire

DIGEST, PAYLOAD = encoded(1)
OFFER = wire.Offer(round=ROUND, slice=0, digest=DIGEST, num_bytes=len(PAYLOAD))
BLOB = wire.Blob(digest=DIGEST, num_bytes=len(PAYLOAD))


class Served:
    """What A sees of B's server; `ended` is how serving A came to its end."""

    def __init__(self, tmp_path, *, dialler=A):
        self.network = Network()
        self.reducer, self.told = reducer(tmp_path / "blobs")
        self.file = tmp_path / "file"
        self.file.write_bytes(b"before" + PAYLOAD + b"after")
        self.places = {DIGEST: (self.file, 6, len(PAYLOAD))}
        server = BlobServer(
            reducer=self.reducer, locate=[lambda _: None, lambda digest: self.places.get(digest)]
        )
        self.connection, theirs = pair(self.network, dialler, B)
        self.ended = asyncio.create_task(server.serve(theirs))

    async def ask(self, message, payload=b""):
        await self.connection.send(message, payload)
        answer = await self.connection.receive()
        if isinstance(answer, wire.Blob):
            return answer, await self.connection.receive_payload(answer.num_bytes)
        return answer


@asynccontextmanager
async def served(tmp_path, **options):
    server = Served(tmp_path, **options)
    try:
        yield server
    finally:
        await server.connection.close()
        server.ended.cancel()
        await asyncio.gather(server.ended, return_exceptions=True)


def test_a_stranger_gets_nothing(tmp_path):
    async def main():
        async with served(tmp_path, dialler=None) as server:
            assert isinstance(await server.connection.receive(), wire.Refused)
            await server.ended

    run(main())


def test_a_blob_is_sent_from_where_it_lies(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(wire.Fetch(digest=DIGEST)) == (BLOB, PAYLOAD)
            assert await server.ask(wire.Fetch(digest=digest_of(b"?"))) == wire.Missing()
            assert await server.ask(wire.Fetch(digest=DIGEST)) == (BLOB, PAYLOAD)

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


def test_a_slice_is_taken_once(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(OFFER) == wire.Want()
            assert await server.ask(BLOB, PAYLOAD) == wire.Taken()
            assert server.reducer.has(A, 0, DIGEST)
            assert await server.ask(OFFER) == wire.Have()
            assert len(server.told.delivered()) == 2  # the host may have been away

    run(main())


def test_a_slice_of_a_round_that_is_not_open_here_is_asked_for_later(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(replace(OFFER, round=RoundId(4))) == wire.Missing()
            assert await server.ask(OFFER) == wire.Want()

    run(main())


@pytest.mark.parametrize(
    "offer",
    [
        replace(OFFER, num_bytes=len(PAYLOAD) - 1),
        replace(OFFER, num_bytes=2**31),
        replace(OFFER, slice=1),
        replace(OFFER, slice=99),
    ],
)
def test_a_slice_of_another_size_is_refused_before_its_bytes_are_sent(tmp_path, offer):
    async def main():
        async with served(tmp_path) as server:
            refused = await server.ask(offer)
            assert "another size" in refused.reason
            with pytest.raises(BadBlobError):
                await server.ended

    run(main())


@pytest.mark.parametrize(
    ("message", "payload", "reason"),
    [
        (replace(BLOB, num_bytes=2**31), b"", "not the blob that was offered"),
        (wire.Want(), b"", "not the blob that was offered"),
        (BLOB, PAYLOAD[:-1] + b"?", "not what it announced"),
    ],
)
def test_bytes_that_were_not_offered_are_refused(tmp_path, message, payload, reason):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(OFFER) == wire.Want()
            refused = await server.ask(message, payload)
            assert reason in refused.reason
            with pytest.raises(BadBlobError):
                await server.ended
            assert not server.told

    run(main())


def test_one_that_offers_and_then_sends_nothing_is_given_up(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            assert await server.ask(OFFER) == wire.Want()
            await server.ended
            return now()

    assert run(main()) == ANSWER_S


def test_an_update_is_sent_as_soon_as_it_is_there(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            await server.reducer.take(A, 0, DIGEST, PAYLOAD)
            request = wire.FetchUpdate(round=ROUND, roster_version=1, slice=0, seconds=20)
            asking = asyncio.create_task(server.ask(request))
            await asyncio.sleep(15)
            assert not asking.done()
            await server.reducer.reduce(job((A, 1.0, DIGEST)))
            (reduced,) = server.told.reduced()
            payload = (tmp_path / "blobs" / reduced.digest).read_bytes()
            server.places[reduced.digest] = (tmp_path / "blobs" / reduced.digest, 0, len(payload))
            blob, received = await asking
            assert (blob.digest, received) == (reduced.digest, payload)
            assert now() == 15

    run(main())


@pytest.mark.parametrize(("seconds", "waited"), [(0.0, 0.0), (20.0, 20.0)])
def test_an_update_that_does_not_come_in_time_is_missing(tmp_path, seconds, waited):
    async def main():
        async with served(tmp_path) as server:
            request = wire.FetchUpdate(round=ROUND, roster_version=1, slice=0, seconds=seconds)
            assert await server.ask(request) == wire.Missing()
            return now()

    assert run(main()) == waited


def test_an_update_of_a_round_that_is_over_is_missing_at_once(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            request = wire.FetchUpdate(round=RoundId(2), roster_version=1, slice=0, seconds=20)
            assert await server.ask(request) == wire.Missing()
            return now()

    assert run(main()) == 0


def test_what_is_no_request_is_refused(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            refused = await server.ask(wire.Taken())
            assert refused.reason == "Taken is no request for a blob"
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
