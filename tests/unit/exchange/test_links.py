"""Two members on a network in memory: one asks, the other answers from a script."""

import asyncio

import pytest
from hypothesis import given, strategies as st
from tests.unit.memory import MemoryTransport, Network
from tests.unit.virtual import now, run

from atoll.errors import BadBlobError, ConnectionLost, PeerError, ProtocolError
from atoll.exchange import links as blobs
from atoll.exchange.links import (
    ANSWER_S,
    ASK_EVERY_S,
    FAR_CONNECTIONS,
    FAR_S,
    FLOWS,
    SHUNNED_ROUNDS,
    SLOWEST_BYTES_PER_S,
    Links,
    Patience,
    num_connections,
)
from atoll.ids import PeerId, digest_of
from atoll.net import wire

A, B, C, D = (PeerId(letter * 32) for letter in "abcd")
PAYLOAD = bytes(range(200))
DIGEST = digest_of(PAYLOAD)
BLOB = wire.Blob(digest=DIGEST, num_bytes=len(PAYLOAD))
REFUSED = wire.Refused(reason="no", hint="because")


def answering(*answers):
    """Return a server that hears a message before each of these answers, and is then silent."""

    async def serve(connection):
        for answer in answers:
            await connection.receive()
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


def fetch(connection):
    return blobs.fetch(connection, DIGEST, at_most=len(PAYLOAD))


def fetch_from_any(links, sources):
    return blobs.fetch_from_any(links, sources, DIGEST, at_most=len(PAYLOAD))


# --- one request ---------------------------------------------------------------------------------


def test_a_blob_is_fetched_or_missing():
    assert asking(fetch, (BLOB, PAYLOAD)) == PAYLOAD
    assert asking(fetch, wire.Missing()) is None


def test_a_refusal_comes_with_its_reason():
    with pytest.raises(PeerError, match="refused: no") as caught:
        asking(fetch, REFUSED)
    assert caught.value.hint == "because"


@pytest.mark.parametrize(
    "answer",
    [wire.Taken(slice=0), (wire.Blob(digest=digest_of(b"another"), num_bytes=3), b"abc")],
)
def test_an_answer_out_of_place_is_a_protocol_error(answer):
    with pytest.raises(ProtocolError, match="out of place"):
        asking(fetch, answer)


def test_a_blob_that_is_too_large_is_refused_before_it_comes():
    with pytest.raises(ProtocolError, match="where 200 are the most"):
        asking(fetch, wire.Blob(digest=DIGEST, num_bytes=201))


def test_a_damaged_blob_is_found():
    with pytest.raises(BadBlobError, match="damaged"):
        asking(fetch, (BLOB, PAYLOAD), damaging={B})


@pytest.mark.parametrize(
    ("answers", "seconds"),
    [([], ANSWER_S), ([BLOB], ANSWER_S + len(PAYLOAD) / SLOWEST_BYTES_PER_S)],
)
def test_one_that_does_not_answer_is_lost(answers, seconds):
    async def timed(connection):
        with pytest.raises(ConnectionLost, match="does not answer"):
            await fetch(connection)
        return now()

    assert asking(timed, *answers) == pytest.approx(seconds)


def test_who_has_to_wait_itself_is_given_that_time_too():
    async def main():
        with pytest.raises(ConnectionLost, match="does not answer"):
            async with Patience(10 * SLOWEST_BYTES_PER_S, waiting_s=5):
                await asyncio.sleep(1000)
        return now()

    assert run(main()) == ANSWER_S + 15


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
        self.asked = []

    async def listen(self):
        for address in self.addresses:
            transport = self.network.transport(address.peer)
            await transport.listen(self.serve(address.peer), host="h", port=address.port)
        return self

    def serve(self, peer):
        async def serve(connection):
            while True:
                await connection.receive()
                self.asked.append(peer)
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


def test_only_connections_that_a_plan_has_a_use_for_are_kept():
    async def main():
        members = await Members(Network()).listen()
        links, (to_b, to_c) = members.links, members.addresses
        async with links.to(to_c) as with_c:
            async with links.to(to_b) as with_b, links.to(to_b) as also_with_b:
                pass
            links.keep_only({C})
            await asyncio.sleep(0)
            assert not with_b.is_open
            assert not also_with_b.is_open
            assert await fetch(with_c) == PAYLOAD
            links.keep_only(())
            assert await fetch(with_c) == PAYLOAD, "it is in use"
        async with links.to(to_c) as again, links.to(to_b) as anew:
            assert again is with_c
            assert await fetch(anew) == PAYLOAD
        await links.close()
        assert not again.is_open
        assert not anew.is_open

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


def test_a_source_that_failed_is_asked_last_for_some_rounds():
    async def main():
        members = await Members(Network()).listen()
        members.network.unreachable.add(1)
        assert await fetch_from_any(members.links, members.addresses) == PAYLOAD
        members.network.unreachable.clear()

        for _ in range(SHUNNED_ROUNDS):
            assert await fetch_from_any(members.links, members.addresses) == PAYLOAD
            members.links.end_round()
        assert B not in members.asked
        assert await fetch_from_any(members.links, members.addresses) == PAYLOAD
        assert members.asked[-1] == B

    run(main())


def test_a_source_that_failed_is_asked_if_no_other_has_the_blob():
    async def main():
        members = await Members(Network()).listen()
        members.links.note_failed(B)
        members.has[C] = False
        assert await fetch_from_any(members.links, members.addresses) == PAYLOAD

    run(main())


# --- several connections to one that is far -----------------------------------------------------


@given(
    round_trip_s=st.none() | st.floats(0, 10),
    num_members=st.integers(1, 2000),
    backs_off=st.booleans(),
)
def test_only_who_is_far_gets_several_connections_and_all_together_are_few(
    round_trip_s, num_members, backs_off
):
    num = num_connections(round_trip_s, num_members=num_members, backs_off=backs_off)
    assert 1 <= num <= FAR_CONNECTIONS
    if num > 1:
        assert round_trip_s >= FAR_S
        assert backs_off
        assert num * num_members <= FLOWS
    assert num >= num_connections(round_trip_s, num_members=num_members + 1, backs_off=backs_off)


@pytest.mark.parametrize(
    ("delay_s", "backs_off", "num_blobs", "parts"),
    [
        (2 * FAR_S, True, 8, [[0, 6], [1, 7], [2], [3], [4], [5]]),
        (2 * FAR_S, True, 2, [[0], [1]]),
        (2 * FAR_S, False, 3, [[0, 1, 2]]),
        (FAR_S / 2, True, 3, [[0, 1, 2]]),
    ],
)
def test_what_is_to_be_done_is_dealt_out_to_the_connections(delay_s, backs_off, num_blobs, parts):
    async def main():
        members = await Members(Network()).listen()
        members.network.delays[1] = delay_s
        links, (to_b, _) = members.links, members.addresses
        links.transport.backs_off = backs_off
        used = {}

        async def use(connection, part):
            used[connection] = list(part)
            assert await fetch(connection) == PAYLOAD

        for _ in range(2):  # the second time the connections are there
            used.clear()
            await links.share_out(to_b, range(num_blobs), use)
            assert sorted(used.values()) == parts
        assert members.network.num_dialled == len(parts)
        await links.close()

    run(main())


async def links_to_one_far_away():
    """Return links whose flows back off, and the address of a member that takes several."""
    members = await Members(Network()).listen()
    members.network.delays[1] = 2 * FAR_S
    members.links.transport.backs_off = True
    return members.links, members.addresses[0]


def test_whoever_was_dialled_over_a_busy_line_is_near_once_a_connection_knows_better():
    async def main():
        links, to_b = await links_to_one_far_away()
        used = []

        async def use(connection, _part):
            used.append(connection)

        await links.share_out(to_b, range(8), use)
        assert len(used) == FAR_CONNECTIONS
        used[0].round_trip_s = FAR_S / 8  # the others still have what they were dialled in
        used.clear()
        await links.share_out(to_b, range(8), use)
        assert len(used) == 1
        await links.close()

    run(main())


def test_when_one_connection_fails_all_end_and_none_is_used_again():
    async def main():
        links, to_b = await links_to_one_far_away()
        used = []

        async def use(connection, part):
            used.append(connection)
            if 1 in part:
                raise PeerError("refused")
            await asyncio.sleep(1000)

        with pytest.raises(PeerError, match="refused"):
            await links.share_out(to_b, range(8), use)
        assert len(used) == FAR_CONNECTIONS
        assert not any(connection.is_open for connection in used)

    run(main())


# --- the rate of the line ------------------------------------------------------------------------


class Telling(MemoryTransport):
    """Tells what the others have: a line of so many bytes per second is full all the time."""

    num_asked = 0

    @property
    def num_confirmed(self):
        self.num_asked += 1
        return int(4e6 * now())


def test_what_others_have_is_the_rate_and_is_not_asked_for_at_each_transfer():
    async def main():
        transport = Telling(Network(), A)
        links = Links(transport)

        async def flow():
            for _ in range(100):
                with links.sending(10**9):  # says nothing: it is in our buffers
                    await asyncio.sleep(ASK_EVERY_S / 8)

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(flow())
        assert links.up.end_round() == pytest.approx(4e6, rel=0.1)
        assert transport.num_asked < 30

    run(main())
