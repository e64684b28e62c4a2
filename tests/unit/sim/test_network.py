"""A network of known rates and delays: everything that crosses it comes when it should."""

import asyncio
from random import Random

import pytest

from atoll.errors import ConnectionLost, PeerError, ProtocolError, RunError
from atoll.ids import PeerId, digest_of
from atoll.net import wire
from atoll.sim.links import Link
from atoll.sim.loop import Condition, Process, run
from atoll.sim.network import BURST_BYTES, Harm, Network, Tampering
from atoll.sim.transport import WINDOW_BYTES, SimTransport

A, B, C = (PeerId(letter * 32) for letter in "abc")
LATENCY_S = 0.05  # of one line; a packet takes twice that
LINE = Link(up_bytes_per_s=1000.0, down_bytes_per_s=2000.0, latency_s=LATENCY_S)
BLOB = wire.Blob(digest=digest_of(b""), num_bytes=1000)
LARGE = wire.Blob(digest=digest_of(b""), num_bytes=2 * BURST_BYTES)
BEAT = wire.Heartbeat()


class Place:
    """A machine with one process that listens, and keeps the connections that came."""

    def __init__(self, network, name, peer, link=LINE):
        self.machine = network.join(name, link)
        self.process = Process(name, asyncio.get_running_loop(), Condition())
        self.transport = SimTransport(network, self.machine, self.process, peer)
        self.came = asyncio.Queue()
        self.served = asyncio.Event()

    async def listen(self, port=7):
        async def serve(connection):
            self.came.put_nowait(connection)
            await self.served.wait()

        self.listener = await self.transport.listen(serve, host="h", port=port)

    async def die(self):
        self.process.die()
        self.transport.die()


def scene(act, **links):
    """Let `act` play with a network, and two or three places on it."""

    async def main():
        network = Network(Random(0))
        names = {"anna": A, "ben": B, "carl": C}
        places = [Place(network, name, peer, links.get(name, LINE)) for name, peer in names.items()]
        for place in places:
            await place.listen()
        result = await act(network, *places)
        assert asyncio.get_running_loop().bugs == []
        return result

    return run(main(), limit_s=100_000)


def now():
    return asyncio.get_running_loop().time()


async def connected(one, other, **changes):
    ours = await one.transport.dial(
        other.machine.name, 7, **{"expect": other.transport.peer, "timeout_s": 5.0, **changes}
    )
    return ours, await other.came.get()


def test_a_message_takes_the_latency_and_a_payload_its_bytes():
    async def act(network, anna, ben, carl):
        ours, theirs = await connected(anna, ben)
        assert now() == pytest.approx(4 * 2 * LATENCY_S)  # TCP and TLS: two round trips
        assert (ours.peer, theirs.peer, theirs.remote_host) == (B, A, "anna")
        began_at = now()
        sending = asyncio.create_task(ours.send(BLOB, bytes(range(200)) * 5))
        assert await theirs.receive() == BLOB
        assert now() - began_at == pytest.approx(2 * LATENCY_S)
        assert await theirs.receive_payload(1000) == bytes(range(200)) * 5
        assert now() - began_at == pytest.approx(1.0 + 2 * LATENCY_S)  # at 1000 bytes per second
        await sending
        sent = len(wire.encode(BLOB)) + 4 + 1000
        assert (anna.transport.num_sent, ben.transport.num_received) == (sent, sent)

    scene(act)


def test_flows_share_the_line_of_who_sends_and_of_who_receives():
    async def act(network, anna, ben, carl):
        first, _ = await connected(anna, ben)
        second, _ = await connected(anna, carl)
        began_at = now()
        await asyncio.gather(first.send(BLOB, bytes(20_000)), second.send(BLOB, bytes(60_000)))
        # Both at 500 until 20 000 are through at 40 s; the rest of the second alone, at 1000.
        assert now() - began_at == pytest.approx(80.0)

    scene(act)


def test_small_payloads_queue_at_both_lines():
    async def act(network, anna, ben, carl):
        came, connections = [], [await connected(anna, ben), await connected(carl, ben)]

        async def send(ours, theirs):
            await ours.send(BLOB, bytes(1000))
            came.append(now() - began_at)

        began_at = now()
        await asyncio.gather(*(send(*ends) for ends in (*connections, *connections)))
        # anna's and carl's lines carry two each, one after the other, and ben's all four.
        assert sorted(came) == pytest.approx([1.0, 2.0, 3.0, 4.0])

    line = Link(up_bytes_per_s=1e3, down_bytes_per_s=1e3, latency_s=LATENCY_S)
    scene(act, ben=line)


def test_a_paced_flow_leaves_the_rest_to_the_others():
    async def act(network, anna, ben, carl):
        first, _ = await connected(anna, ben)
        first.pace(1024.0)
        began_at = now()
        await first.send(BLOB, bytes(4096))
        return now() - began_at

    line = Link(up_bytes_per_s=1e6, down_bytes_per_s=1e6, latency_s=LATENCY_S)
    assert scene(act, anna=line, ben=line, carl=line) == pytest.approx(4.0)


def test_a_line_that_is_cut_is_silent_and_goes_on_when_it_heals():
    async def act(network, anna, ben, carl):
        ours, theirs = await connected(anna, ben)
        network.cut("anna", "ben")
        sending = asyncio.create_task(ours.send(LARGE, bytes(LARGE.num_bytes)))
        await asyncio.sleep(30)
        assert not sending.done()
        with pytest.raises(ConnectionLost, match="does not answer in time"):
            await anna.transport.dial("ben", 7, expect=B, timeout_s=3.0)
        await connected(anna, carl)  # the others are reached
        network.heal("anna", "ben")
        await sending
        assert await theirs.receive() == LARGE
        assert len(await theirs.receive_payload(LARGE.num_bytes)) == LARGE.num_bytes

    scene(act)


def test_who_is_behind_nat_dials_and_is_not_dialled():
    async def act(network, anna, ben, carl):
        await connected(anna, ben)
        with pytest.raises(ConnectionLost, match="does not answer"):
            await ben.transport.dial("anna", 7, expect=A, timeout_s=5.0)

    scene(
        act,
        anna=Link(up_bytes_per_s=1e3, down_bytes_per_s=1e3, latency_s=LATENCY_S, nat=True),
    )


def test_dialling_tells_what_is_wrong():
    async def act(network, anna, ben, carl):
        dial = anna.transport.dial
        with pytest.raises(ConnectionLost, match="no address"):
            await dial("nobody", 7, expect=None, timeout_s=1.0)
        with pytest.raises(ConnectionLost, match="nothing listens"):
            await dial("ben", 8, expect=None, timeout_s=1.0)
        with pytest.raises(PeerError, match="not c"):
            await dial("ben", 7, expect=C, timeout_s=1.0)
        with pytest.raises(RunError, match="taken"):
            await anna.listen(7)

    scene(act)


def test_a_closed_connection_delivers_what_was_sent_before():
    async def act(network, anna, ben, carl):
        ours, theirs = await connected(anna, ben)
        await ours.send(BEAT)
        await ours.close()
        assert await theirs.receive() == BEAT
        with pytest.raises(ConnectionLost, match="the other side closed"):
            await theirs.receive()
        with pytest.raises(ConnectionLost, match="closed here"):
            await ours.send(BEAT)

    scene(act)


def test_a_process_that_dies_is_noticed_and_one_without_power_is_not():
    async def act(network, anna, ben, carl):
        ours, _ = await connected(anna, ben)
        await ben.die()
        with pytest.raises(ConnectionLost, match="broke"):
            await ours.receive()
        other, _ = await connected(anna, carl)
        carl.machine.is_up = False
        await carl.die()
        network.changed()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await other.receive()
        carl.machine.is_up = True  # it starts again, and knows nothing of that connection
        network.changed()
        await asyncio.sleep(1)
        await other.send(BEAT)
        with pytest.raises(ConnectionLost):
            await other.receive()

    scene(act)


def test_a_frozen_process_is_sent_no_more_than_the_buffers_hold():
    async def act(network, anna, ben, carl):
        ours, _ = await connected(anna, ben)
        ben.process.freeze()
        num_sent = 0

        async def send_on():
            nonlocal num_sent
            while True:
                await ours.send(wire.Leaving(reason="x" * 1000))
                num_sent += 1

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_on(), 1000)
        size = len(wire.encode(wire.Leaving(reason="x" * 1000)))
        assert WINDOW_BYTES < num_sent * size <= WINDOW_BYTES + size

    scene(act)


def test_a_send_that_is_cancelled_half_way_breaks_the_connection():
    async def act(network, anna, ben, carl):
        ours, theirs = await connected(anna, ben)
        sending = asyncio.create_task(ours.send(BLOB, bytes(1000)))
        await asyncio.sleep(0.5)
        assert await theirs.receive() == BLOB
        sending.cancel()
        with pytest.raises(ConnectionLost):
            await theirs.receive_payload(1000)

    scene(act)


@pytest.mark.parametrize(
    ("harm", "comes"),
    [
        (Harm.LOSE, [ConnectionLost]),
        (Harm.REPEAT, [BEAT, BEAT]),
        (Harm.CORRUPT, [ProtocolError]),
        (Harm.DELAY, [BEAT]),
    ],
)
def test_harm_to_a_message_is_done_as_it_would_be(harm, comes):
    async def act(network, anna, ben, carl):
        ours, theirs = await connected(anna, ben)
        network.tamper = lambda one, other, message: Tampering(harm, seconds=7.0)
        began_at = now()
        if harm is Harm.LOSE:
            with pytest.raises(ConnectionLost):
                await ours.send(BEAT)
        else:
            await ours.send(BEAT)
        for expected in comes:
            if isinstance(expected, type):
                with pytest.raises(expected):
                    await theirs.receive()
            else:
                assert await theirs.receive() == expected
        assert (now() - began_at > 7.0) == (harm is Harm.DELAY)

    scene(act)


def test_a_corrupt_payload_is_of_the_right_length():
    async def act(network, anna, ben, carl):
        ours, theirs = await connected(anna, ben)
        network.tamper = lambda one, other, message: Tampering(Harm.CORRUPT)
        await ours.send(BLOB, bytes(1000))
        assert await theirs.receive() == BLOB
        payload = await theirs.receive_payload(1000, bytearray(1000))
        assert sum(byte.bit_count() for byte in payload) == 1

    scene(act)
