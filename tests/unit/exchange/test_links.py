"""Two members on a network in memory: one asks, the other answers from a script."""

import asyncio

import pytest
from tests.unit.memory import Network
from tests.unit.virtual import now, run

from atoll.errors import BadBlobError, ConnectionLost, PeerError, ProtocolError
from atoll.exchange import links as blobs
from atoll.exchange.links import ANSWER_S, Links
from atoll.ids import PeerId, RoundId, digest_of
from atoll.net import wire

A, B, C = (PeerId(letter * 32) for letter in "abc")
PAYLOAD = bytes(range(200))
DIGEST = digest_of(PAYLOAD)
BLOB = wire.Blob(digest=DIGEST, num_bytes=len(PAYLOAD))
REFUSED = wire.Refused(reason="no", hint="because")


def answering(*answers):
    """Return a server that hears a message before each of these answers, and is then silent."""

    async def serve(connection):
        for answer in answers:
            heard = await connection.receive()
            if isinstance(heard, wire.Blob):
                await connection.receive_payload(heard.num_bytes)
            if isinstance(answer, tuple):
                await connection.send(*answer)
            else:
                await connection.send(answer)
        await asyncio.sleep(1000)

    return serve


def asking(ask, *answers, damaging=()):
    """Return what `ask` makes of a connection to a member that gives these answers."""

    async def main():
        network = Network(damaging=set(damaging))
        listener = await network.transport(B).listen(answering(*answers), host="h", port=1)
        links = Links(network.transport(A))
        try:
            async with links.to(wire.Address(peer=B, host="h", port=1)) as connection:
                return await ask(connection)
        finally:
            await links.close()
            await listener.close()

    return run(main())


def offer(connection):
    return blobs.offer(connection, PAYLOAD, round_id=RoundId(1), index=0, digest=DIGEST)


def fetch(connection):
    return blobs.fetch(connection, DIGEST, at_most=len(PAYLOAD))


def fetch_update(connection):
    request = wire.FetchUpdate(round=RoundId(1), roster_version=2, slice=0, seconds=20.0)
    return blobs.fetch_update(connection, request, at_most=len(PAYLOAD))


def fetch_from_any(links, sources):
    return blobs.fetch_from_any(links, sources, DIGEST, at_most=len(PAYLOAD))


# --- one request ---------------------------------------------------------------------------------


def test_a_slice_that_is_wanted_is_sent_and_one_that_is_there_is_not():
    assert asking(offer, wire.Want(), wire.Taken()) == len(PAYLOAD)
    assert asking(offer, wire.Have()) == 0


def test_a_blob_is_fetched_or_missing():
    assert asking(fetch, (BLOB, PAYLOAD)) == PAYLOAD
    assert asking(fetch, wire.Missing()) is None


def test_an_update_is_fetched_with_its_name_or_missing():
    assert asking(fetch_update, (BLOB, PAYLOAD)) == (DIGEST, PAYLOAD)
    assert asking(fetch_update, wire.Missing()) is None


@pytest.mark.parametrize("ask", [offer, fetch, fetch_update])
def test_a_refusal_comes_with_its_reason(ask):
    with pytest.raises(PeerError, match="refused: no") as caught:
        asking(ask, REFUSED)
    assert caught.value.hint == "because"


@pytest.mark.parametrize(
    ("ask", "answers"),
    [
        (offer, [wire.Taken()]),
        (offer, [wire.Want(), wire.Want()]),
        (fetch, [wire.Want()]),
        (fetch, [(wire.Blob(digest=digest_of(b"another"), num_bytes=3), b"abc")]),
        (fetch_update, [wire.Have()]),
    ],
)
def test_an_answer_out_of_place_is_a_protocol_error(ask, answers):
    with pytest.raises(ProtocolError, match="out of place"):
        asking(ask, *answers)


def test_a_slice_that_is_refused_after_it_was_sent():
    with pytest.raises(PeerError, match="refused"):
        asking(offer, wire.Want(), REFUSED)


@pytest.mark.parametrize("ask", [fetch, fetch_update])
def test_a_blob_that_is_too_large_is_refused_before_it_comes(ask):
    with pytest.raises(ProtocolError, match="where 200 are the most"):
        asking(ask, wire.Blob(digest=DIGEST, num_bytes=201))


@pytest.mark.parametrize("ask", [fetch, fetch_update])
def test_a_damaged_blob_is_found(ask):
    with pytest.raises(BadBlobError, match="damaged"):
        asking(ask, (BLOB, PAYLOAD), damaging={B})


@pytest.mark.parametrize(
    ("ask", "answers", "seconds"),
    [
        (fetch, [], ANSWER_S),
        (fetch_update, [], ANSWER_S + 20),  # it may wait so long itself
        (offer, [], ANSWER_S + len(PAYLOAD) / blobs.SLOWEST_BYTES_PER_S),
        (offer, [wire.Want()], ANSWER_S + len(PAYLOAD) / blobs.SLOWEST_BYTES_PER_S),
        (fetch, [BLOB], ANSWER_S + len(PAYLOAD) / blobs.SLOWEST_BYTES_PER_S),
    ],
)
def test_one_that_does_not_answer_is_lost(ask, answers, seconds):
    async def timed(connection):
        with pytest.raises(ConnectionLost, match="does not answer"):
            await ask(connection)
        return now()

    assert asking(timed, *answers) == pytest.approx(seconds)


# --- connections ---------------------------------------------------------------------------------


class Members:
    """B and C, which serve blobs, and the links of A to them."""

    def __init__(self, network):
        self.network = network
        self.links = Links(network.transport(A))
        self.addresses = [
            wire.Address(peer=peer, host="h", port=port) for peer, port in ((B, 1), (C, 2))
        ]
        self.has = {B: True, C: True}

    async def listen(self):
        for address in self.addresses:
            transport = self.network.transport(address.peer)
            await transport.listen(self.serve(address.peer), host="h", port=address.port)
        return self

    def serve(self, peer):
        async def serve(connection):
            while True:
                await connection.receive()
                if self.has[peer]:
                    await connection.send(BLOB, PAYLOAD)
                else:
                    await connection.send(wire.Missing())

        return serve


def test_a_connection_is_kept_for_the_next_request_unless_it_failed():
    async def main():
        members = await Members(Network()).listen()
        network, links, (to_b, _) = members.network, members.links, members.addresses
        for _ in range(3):
            async with links.to(to_b) as connection:
                assert await fetch(connection) == PAYLOAD
        assert network.num_dialled == 1
        async with links.to(to_b) as one, links.to(to_b) as other:
            assert one is not other  # each serves one request at a time
        assert network.num_dialled == 2
        network.damaging.add(B)
        with pytest.raises(BadBlobError):
            async with links.to(to_b) as connection:
                await fetch(connection)
        assert not connection.is_open
        await links.close()
        assert not any(c.is_open for c in network.connections if c.owner == A)

    run(main())


def test_a_connection_that_the_other_side_has_ended_is_not_used_again():
    async def main():
        members = await Members(Network()).listen()
        network, links, (to_b, _) = members.network, members.links, members.addresses
        async with links.to(to_b) as one, links.to(to_b) as other:
            pass
        network.cut(B)  # it was started anew, say
        async with links.to(to_b) as connection:
            assert await fetch(connection) == PAYLOAD
        assert connection not in (one, other)

    run(main())


def test_a_cancelled_request_closes_its_connection():
    async def main():
        network = Network()
        await network.transport(B).listen(answering(), host="h", port=1)
        links = Links(network.transport(A))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), links.to(wire.Address(peer=B, host="h", port=1)) as link:
                await fetch(link)
        assert not link.is_open
        with pytest.raises(ConnectionLost):
            await fetch(link)

    run(main())


def test_an_address_with_somebody_else_behind_it_is_an_error_of_that_peer():
    async def main():
        members = await Members(Network()).listen()
        with pytest.raises(PeerError, match="not cccc"):
            async with members.links.to(wire.Address(peer=C, host="h", port=1)):
                pass

    run(main())


@pytest.mark.parametrize("fault", ["none", "missing", "unreachable", "damaged"])
def test_the_blob_comes_from_the_first_source_that_has_it(fault):
    async def main():
        members = await Members(Network()).listen()
        if fault == "missing":
            members.has[B] = False
        if fault == "unreachable":
            members.network.unreachable.add(1)
        if fault == "damaged":
            members.network.damaging.add(B)
        found = await fetch_from_any(members.links, members.addresses)
        assert found == PAYLOAD
        asked = {c.peer for c in members.network.connections if c.owner == A}
        assert (C in asked) == (fault != "none")
        members.has[C] = False
        members.has[B] = False
        assert await fetch_from_any(members.links, members.addresses) is None
        assert await fetch_from_any(members.links, []) is None

    run(main())
