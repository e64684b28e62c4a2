"""Real files behind real sockets: one is written over while it is served, a line is cut."""

import asyncio
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest
from tests.unit.exchange.cast import ROUND, A, job, reduce, reducer_of, reducers, server
from tests.unit.net.conftest import member_of
from tests.unit.net.test_transport import LOCAL, dialled, listening

from atoll.errors import ConnectionLost
from atoll.exchange.blobs import BlobStore
from atoll.exchange.codec import CODECS
from atoll.exchange.gather import Wanted, gather_from
from atoll.exchange.links import Links, fetch
from atoll.exchange.serve import BlobServer
from atoll.ids import digest_of
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.net.transport import TcpTransport
from atoll.units import MIB

NUM_SLICES, NUM_VALUES = 24, 3000  # several pieces of a line each


@pytest.fixture(scope="module")
def members():
    """Two that have certificates of one run."""
    authority = Authority.create(run=digest_of(b"run"))
    return member_of(authority, "anna"), member_of(authority, "ben")


@asynccontextmanager
async def cut_after(num_bytes, *, to):
    """A way to this port, for connections one after the other; yields its own port.

    The first one ends without a word when so many bytes have come back on it.
    """
    left = [num_bytes]

    async def pump(reader, writer, *, is_cut):
        with suppress(OSError):
            while data := await reader.read(1000):
                if is_cut and left:
                    left[0] -= len(data)
                    if left[0] < 0:
                        left.clear()
                        return
                writer.write(data)
                await writer.drain()

    async def join(reader, writer):
        there, back = await asyncio.open_connection(LOCAL, to)
        ways = [
            asyncio.ensure_future(pump(reader, back, is_cut=False)),
            asyncio.ensure_future(pump(there, writer, is_cut=True)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, back):
            end.transport.abort()
        await asyncio.gather(*ways)

    relay = await asyncio.start_server(join, LOCAL, 0)
    async with relay:
        yield relay.sockets[0].getsockname()[1]


def test_a_slow_reader_gets_the_blob_that_it_asked_for_though_its_file_has_another(
    members, tmp_path
):
    """It is swept, and its file written over, when a part of it is on its way."""
    anna, ben = members
    blobs = BlobStore(tmp_path, young_turns=0)
    payload, other = bytes(range(256)) * (32 * MIB // 256), bytes(32 * MIB)
    digest = digest_of(payload)
    blobs.put(digest, payload)

    async def main():
        all_, _ = reducers(tmp_path / "reducers")
        links = Links(TcpTransport(ben))
        serving = BlobServer(reducers=all_, updates=blobs.locate, states=[], links=links)
        async with listening(ben, serving.serve) as listener, dialled(anna, listener.port) as line:
            await line.send(wire.Fetch(digest=digest))
            announced = await line.receive()
            assert announced == wire.Blob(digest=digest, num_bytes=len(payload))
            inode = blobs.locate(digest).path.stat().st_ino
            blobs.turn()
            blobs.sweep(())
            blobs.put(digest_of(other), other)
            assert blobs.locate(digest_of(other)).path.stat().st_ino == inode
            assert not links.traffic.updates_sent, "a part of it is still to be sent"
            assert digest_of(await line.receive_payload(announced.num_bytes)) == digest
            assert await fetch(line, digest, at_most=len(payload)) is None

    asyncio.run(main())


@pytest.mark.parametrize("num_bytes", [6_000, 20_000, 45_000, 70_000])
def test_what_came_before_the_line_was_cut_is_in_the_store_and_the_rest_comes_again(
    members, tmp_path, num_bytes
):
    """The line is cut while updates are kept in batches: all that was told of is there, whole."""
    anna, ben = members
    codec, sizes = CODECS["int8"], (NUM_VALUES,) * NUM_SLICES
    wanted = Wanted(round=ROUND, roster_version=1, codec=codec, sizes=sizes)
    blobs = BlobStore(tmp_path / "ours")
    digests = {}

    async def form(reducer):
        for index in range(NUM_SLICES):
            payload = codec.encode(np.random.default_rng(index).normal(size=NUM_VALUES))
            await reducer.take(A, index, digest_of(payload), payload)
            await reduce(reducer, job((A, 1.0, digest_of(payload)), index=index))

    def note(index, digest, payload):
        assert index not in digests
        assert digest_of(payload) == digest
        digests[index] = digest

    async def gather(links, address):
        todo = [k for k in range(NUM_SLICES) if k not in digests]
        async with links.to(address) as line:
            await gather_from(line, todo, wanted=wanted, blobs=blobs, links=links, gathered=note)

    async def main():
        all_, told = reducers(tmp_path / "theirs", sizes=sizes)
        await form(reducer_of(all_, ROUND))
        serving = server(all_, Links(TcpTransport(ben)))
        ours = Links(TcpTransport(anna))
        async with (
            listening(ben, serving.serve) as listener,
            cut_after(num_bytes, to=listener.port) as port,
        ):
            address = wire.Address(peer=ben.peer_id, host=LOCAL, port=port)
            with pytest.raises(ConnectionLost):
                await gather(ours, address)
            before = dict(digests)
            assert len(before) < NUM_SLICES
            assert all(digest_of(blobs.get(digest)) == digest for digest in before.values())
            await gather(ours, address)
            await ours.close()
        assert digests == {reduced.slice: reduced.digest for reduced in told.reduced()}
        assert all(digest_of(blobs.get(digest)) == digest for digest in digests.values())

    asyncio.run(main())
