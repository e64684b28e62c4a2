"""The first machine of a peer and the others, on real sockets, without a rank."""

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress

import pytest
from tests.unit.data.whole import assert_whole

from atoll import __version__
from atoll.config import PeerConfig
from atoll.data.shards import Dataset
from atoll.errors import ConfigError, RunError
from atoll.events import MachineCame, MachineLost
from atoll.net.site import SiteKey
from atoll.train.assist import assist, dial
from atoll.train.channel import Train, frame
from atoll.train.launch import TrainerDied
from atoll.train.machines import Machines, ipv4_of
from atoll.train.shared import SharedVectors
from atoll.train.site import Came, Here, Idle, Offer, Refused, Stop, heard_from_first

PATIENCE_S = 60.0


def new_key():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    return SiteKey.create(f"127.0.0.1:{port}")


class FirstMachine:
    """What the first machine sees, and a way to wait for it."""

    def __init__(self, key, num_machines=2):
        self.events = []
        self.missing = []  # whenever a machine comes or goes
        self.news = asyncio.Event()
        peer = PeerConfig(machines=num_machines)
        self.machines = Machines(peer, key, emit=self.note)
        self.machines.on_change = lambda: self.missing.append(self.machines.num_missing)

    def note(self, event):
        self.events.append(event)
        self.news.set()

    async def until(self, num_events):
        async with asyncio.timeout(PATIENCE_S):
            while len(self.events) < num_events:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def first_machine(key, **options):
    first = FirstMachine(key, **options)
    async with first.machines.listening():
        yield first


@asynccontextmanager
async def working(work):
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def come(key, *, name="emil", version=__version__):
    """Connect as another machine does, and return the line."""
    reader, writer = await dial(key)
    writer.write(frame(Came(name=name, version=version)))
    return reader, writer


async def next_of(reader):
    while isinstance(message := await heard_from_first(reader), Here):
        pass
    return message


def start(first, config, dataset, tmp_path):
    vectors = SharedVectors.create(tmp_path / "vectors", 1)
    return first.machines.start(
        config,
        PeerConfig(directory=str(tmp_path)),
        vectors=vectors,
        dataset=dataset.folder,
        log_path=tmp_path / "log",
    )


def test_a_machine_comes_gets_the_dataset_and_goes(dataset, tmp_path):
    key, heard = new_key(), []
    peer = PeerConfig(cache_directory=str(tmp_path / "cache"))

    async def main():
        giving = assist(lambda: key, peer, name="emil", say=heard.append)
        async with first_machine(key) as first:
            assert first.machines.num_missing == 1
            async with working(giving):
                await first.until(1)
                (machine,) = first.machines._present
                for _ in range(2):  # the second time it is there
                    await machine.prepare(dataset.folder)
            await first.until(2)
            assert first.missing == [0, 1]
            assert first.events == [
                MachineCame(name="emil", num_missing=0),
                MachineLost(name="emil", reason="its line has ended"),
            ]

    asyncio.run(main())
    copied = Dataset.open(tmp_path / "cache" / dataset.digest)
    assert_whole(copied)
    assert copied.manifest == dataset.manifest
    assert [line for line in heard if "copying" in line] == [
        "copying the dataset from the first machine"
    ]


def test_a_machine_that_is_early_waits_and_one_that_lost_the_first_finds_it_again(tmp_path):
    keys, heard = [None, new_key(), new_key()], []
    peer = PeerConfig(cache_directory=str(tmp_path))

    def find():
        num_gone = sum("gone" in line for line in heard)
        return keys[min(2, 1 + num_gone)] if heard else keys[0]

    async def main():
        async with working(assist(find, peer, name="emil", say=heard.append)):
            for key in keys[1:]:
                async with first_machine(key) as first:
                    await first.until(1)

    asyncio.run(main())
    first, second = (f"the first machine at 127.0.0.1:{key.port}" for key in keys[1:])
    assert heard[0] == "waiting for a first machine"
    assert [line for line in heard if "connected" in line] == [
        f"connected to {first}",
        f"connected to {second}",
    ]
    assert "the first machine is gone: its line has ended" in heard


def test_nobody_is_heard_who_does_not_have_the_key():
    key = new_key()
    other = SiteKey(address=key.address, port=key.port, secret=bytes(32))

    async def main():
        async with first_machine(key) as first:
            # With the keys of another site: neither side takes the other for one of its own.
            with pytest.raises(ssl.SSLError):
                await dial(other)
            # Without any key: it takes whoever answers, and is not heard.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            reader, writer = await asyncio.open_connection("127.0.0.1", key.port, ssl=context)
            writer.write(frame(Came(name="eve", version=__version__)))
            assert await reader.read() == b""
            writer.close()
            assert first.events == []

    asyncio.run(main())


def test_another_version_is_refused_with_the_reason(tmp_path):
    key = new_key()

    async def main():
        async with first_machine(key) as first:
            reader, writer = await come(key, version="0.0")
            reason = f"it has atoll 0.0, and the first machine {__version__}"
            assert await next_of(reader) == Refused(reason=reason)
            writer.close()
            assert first.events == []

        async def refuse(reader, writer):
            writer.write(frame(Refused(reason=reason)))

        from atoll.net.tls import server_context

        context = server_context(key.identity())
        async with await asyncio.start_server(refuse, "127.0.0.1", key.port, ssl=context):
            peer = PeerConfig(cache_directory=str(tmp_path))
            with pytest.raises(ConfigError, match=r"this machine is not wanted: it has atoll 0\.0"):
                await assist(lambda: key, peer, name="emil", say=lambda _: None)

    asyncio.run(main())


def test_bytes_that_are_no_message_cost_that_machine_its_line():
    key = new_key()

    async def main():
        async with first_machine(key, num_machines=3) as first:
            _, good = await come(key, name="good")
            _, bad = await come(key, name="bad")
            await first.until(2)
            bad.write((5).to_bytes(4, "big") + b"hello")
            await first.until(3)
            lost = first.events[-1]
            assert isinstance(lost, MachineLost)
            assert (lost.name, first.machines.num_missing) == ("bad", 1)
            assert "not a message" in lost.reason
            good.close()
            bad.close()

    asyncio.run(main())


def test_a_trainer_waits_for_all_machines_and_dies_with_one_that_goes(config, dataset, tmp_path):
    key = new_key()

    async def main():
        async with first_machine(key) as first:
            starting = asyncio.create_task(start(first, config, dataset, tmp_path))
            reader, writer = await come(key)
            assert isinstance(await next_of(reader), Offer)
            assert not starting.done()
            writer.close()
            with pytest.raises(TrainerDied, match="machine emil of this peer is gone: its line"):
                await starting
            assert first.missing == [0, 1]

    asyncio.run(main())


def test_what_rank_0_says_is_passed_on_until_it_ends_and_then_the_ranks_there_are_ended():
    key = new_key()

    async def main():
        async with first_machine(key) as first:
            reader, writer = await come(key)
            await first.until(1)
            (machine,) = first.machines._present
            rank_0, ours = socket.socketpair()
            following = asyncio.create_task(
                machine.follow(await asyncio.open_connection(sock=ours))
            )
            order = Train(first_step=3, spans=((0, 4),))
            rank_0.sendall(frame(order))
            assert await next_of(reader) == order
            assert not machine.is_idle
            rank_0.close()
            assert await next_of(reader) == Stop()
            await following
            assert not machine.is_idle, "its ranks may still be there"
            writer.write(frame(Idle()))
            writer.close()
            await first.until(2)
            assert machine.is_idle

    asyncio.run(main())


def test_a_name_that_only_this_machine_knows_by_that_address_is_refused():
    assert ipv4_of("127.0.0.1") == ipv4_of("localhost") == "127.0.0.1"
    with pytest.raises(ConfigError, match="no IPv4 address"):
        ipv4_of("no such name")
    with pytest.raises(ConfigError, match=r"is 127\.0\.0\.1 here, where no other machine is"):
        ipv4_of("LOCALHOST")


def test_an_address_that_is_not_ours_is_refused():
    key = SiteKey.create("192.0.2.1:7790")  # TEST-NET-1, RFC 5737

    async def main():
        with pytest.raises(RunError, match=r"cannot wait .* at 192\.0\.2\.1:7790"):
            async with first_machine(key):
                pass

    asyncio.run(main())
    with pytest.raises(OSError, match=r"."):
        asyncio.run(dial(SiteKey.create(f"127.0.0.1:{new_key().port}")))
