"""The other end of a site's line: this machine gives its ranks to a peer whose agent is elsewhere.

    dial the first machine, again and again -> Came -> [dataset -> ranks -> their end] -> ...

It holds nothing that lasts but the dataset: the ranks get their weights from those of the first
machine. They end when the line does, for whatever reason.
"""

import asyncio
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from msgspec.structs import replace

from atoll import __version__
from atoll.config import PeerConfig
from atoll.data.lock import alone_with
from atoll.data.manifest import blobs_needed
from atoll.data.shards import adopt
from atoll.durable import disk_errors, write_all
from atoll.errors import BadBlobError, ConfigError, ConnectionLost, ProtocolError
from atoll.ids import digest_of
from atoll.net.site import SiteKey
from atoll.net.tls import client_context
from atoll.train.channel import Failed, Seat, Setup, Site, frame, receive
from atoll.train.ranks import how_it_ended, start_process
from atoll.train.site import (
    Came,
    FromMachine,
    Has,
    Here,
    Idle,
    Offer,
    Part,
    Refused,
    Stop,
    Streams,
    ToMachine,
    Wants,
    heard_from_first,
    say_here,
)

RETRY_S: Final = 1.0
DIAL_S: Final = 10.0
Say: TypeAlias = Callable[[str], None]
Find: TypeAlias = Callable[[], SiteKey | None]  # None: there is none yet


async def assist(find: Find, peer: PeerConfig, *, name: str, say: Say) -> None:
    """Give this machine to the peer of a key, until we are cancelled.

    `find` returns the key as it is by now; the first machine may have moved. `peer` is what this
    machine gives: device, devices, threads, where datasets are kept.

    Raises:
        ConfigError: it does not want this machine.
        RunError: the disk does not take the dataset.
    """
    said = ""
    while True:
        key = find()
        where = f"the first machine at {key.address}:{key.port}" if key else "a first machine"
        try:
            streams = None if key is None else await dial(key)
        except OSError:  # not there yet, not there any more, or somebody else
            streams = None
        if streams is None:
            if said != where:
                say(f"waiting for {where}")
            said = where
            await asyncio.sleep(RETRY_S)
            continue
        said = ""
        say(f"connected to {where}")
        line = FirstMachine(streams, peer, name=name, say=say)
        try:
            why = await line.serve()
        finally:
            await line.close()
        say(f"the first machine is gone: {why}")


async def dial(key: SiteKey) -> Streams:
    """Return a connection to the first machine, which has proved that it has the key.

    Raises:
        OSError: nobody is there, or somebody else.
    """
    identity = key.identity()
    context = client_context(identity)
    async with asyncio.timeout(DIAL_S):
        return await asyncio.open_connection(key.address, key.port, ssl=context)


@dataclass(frozen=True)
class Ranks:
    """The process of the first rank here, which leads the others, and our end of its line."""

    process: "subprocess.Popen[bytes]"
    writer: asyncio.StreamWriter
    passing: "asyncio.Task[None]"

    async def end(self) -> None:
        self.passing.cancel()
        self.writer.transport.abort()  # it ends with its line, and the others there with it
        with suppress(ProcessLookupError):
            self.process.kill()
        await asyncio.to_thread(self.process.wait)
        await asyncio.wait([self.passing])


class FirstMachine:
    """The line to it, and the ranks that we have for it."""

    def __init__(self, streams: Streams, peer: PeerConfig, *, name: str, say: Say) -> None:
        self._reader, self._writer = streams
        self._peer = peer
        self._name = name
        self._say = say
        self._ranks: Ranks | None = None
        self._dataset: Path | None = None
        self._saying = asyncio.create_task(say_here(self._writer))

    async def serve(self) -> str:
        """Do what it says until the line ends; return why it has. Raises as `assist`."""
        self._send(Came(name=self._name, version=__version__))
        try:
            while True:
                await self._obey(await self._hear())
        except TimeoutError:
            return "no word has come from it of late"
        except ConnectionLost:
            return "its line has ended"
        except (ProtocolError, BadBlobError) as error:
            return str(error)

    async def close(self) -> None:
        self._saying.cancel()
        if self._ranks is not None:
            await self._ranks.end()
        self._writer.close()

    def _send(self, message: FromMachine) -> None:
        self._writer.write(frame(message))

    async def _hear(self) -> ToMachine:
        while isinstance(message := await heard_from_first(self._reader), Here):
            pass
        return message

    async def _obey(self, message: ToMachine) -> None:
        match message:
            case Refused(reason=reason):
                raise ConfigError(f"this machine is not wanted: {reason}")
            case Offer(manifest=manifest):
                self._dataset = await self._have(manifest)
                self._send(Has())
            case Setup():
                await self._start(message)
            case Stop():
                if self._ranks is not None:
                    await self._ranks.end()
                    self._ranks = None
                self._send(Idle())
            case Part() | Here():
                raise ProtocolError("a part of a dataset that nobody wants")
            case command:
                if self._ranks is not None:
                    self._ranks.writer.write(frame(command))

    # --- the dataset ----------------------------------------------------------------------------

    async def _have(self, manifest: bytes) -> Path:
        """Return the folder of the dataset with this manifest, once it is here."""
        cache = Path(self._peer.cache_directory)
        folder = cache / digest_of(manifest)
        with disk_errors(cache):
            await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
        # Machines may have one file system: one of them writes, the others wait and find it.
        async with alone_with(digest_of(manifest), cache=cache):
            if not await asyncio.to_thread(folder.is_dir):
                self._say("copying the dataset from the first machine")
                await self._copy(manifest, folder.with_suffix(".partial"), cache)
        return folder

    async def _copy(self, manifest: bytes, partial: Path, cache: Path) -> None:
        needed = blobs_needed(manifest)
        self._send(Wants())
        with disk_errors(partial):
            await asyncio.to_thread(partial.mkdir, exist_ok=True)
        for blob in needed:
            left = blob.num_bytes
            with disk_errors(partial):
                file = await asyncio.to_thread((partial / blob.file).open, "wb", buffering=0)
            with file:
                while left > 0:
                    part = await self._hear()  # a silence here is not the disk's
                    if not isinstance(part, Part) or not 0 < len(part.data) <= left:
                        raise ProtocolError("not the next part of the dataset")
                    with disk_errors(partial):
                        await asyncio.to_thread(write_all, file, part.data)
                    left -= len(part.data)
        with disk_errors(partial):
            await asyncio.to_thread(adopt, partial, manifest=manifest, directory=cache)

    # --- the ranks ------------------------------------------------------------------------------

    async def _start(self, setup: Setup) -> None:
        if self._ranks is not None or self._dataset is None or not isinstance(setup.seat, Seat):
            raise ProtocolError("a setup that does not fit here")
        ours = self._peer
        peer = replace(
            setup.peer,
            directory=ours.directory,
            device=ours.device,
            devices=ours.devices,
            threads=ours.threads,
            gpu_memory=ours.gpu_memory,
        )
        address = self._writer.get_extra_info("sockname")[0]
        connection, process = start_process()
        reader, writer = await asyncio.open_connection(sock=connection)
        changed = replace(
            setup,
            peer=peer,
            vectors="",
            dataset=str(self._dataset),
            site=Site(address=address),
        )
        writer.write(frame(changed))
        self._say(f"training, as ranks {setup.seat.rank} and on of {setup.seat.num_ranks}")
        self._ranks = Ranks(process, writer, asyncio.create_task(self._pass_on(reader, process)))

    async def _pass_on(
        self, reader: asyncio.StreamReader, process: "subprocess.Popen[bytes]"
    ) -> None:
        """Pass on what the first rank here says; at its end, how it ended."""
        with suppress(ConnectionLost, ProtocolError):
            while True:
                self._send(await receive(reader))
        with suppress(ProcessLookupError):
            process.kill()  # what does not speak is of no use
        how = how_it_ended(await asyncio.to_thread(process.wait))
        self._say(f"the first rank here {how}")
        self._send(Failed(reason=f"its first rank {how}", hint=""))
