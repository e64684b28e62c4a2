"""The other machines of a peer, as its agent sees them: each holds a line, and gives it its ranks.

    rank 0 <-- loopback --> agent <-- TLS, within the site --> atoll assist <--> its first rank

The agent passes on what rank 0 and the first ranks of the other machines have to say (see `ranks`).
A trainer starts when all machines are there. Where one goes, rank 0 is told which and why, and ends
as with any other rank; a trainer is started again once all machines are back.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex

from msgspec.structs import replace

from atoll import __version__
from atoll.config import PeerConfig, RunConfig
from atoll.data.manifest import MANIFEST_FILE, blobs_needed
from atoll.errors import ConfigError, ConnectionLost, ProtocolError, RunError
from atoll.events import Emit, MachineCame, MachineLost
from atoll.net.site import SiteKey
from atoll.net.tls import server_context
from atoll.train.channel import Address, Failed, Site, frame, receive_command
from atoll.train.launch import Trainer, TrainerDied, accept
from atoll.train.shared import SharedVectors
from atoll.train.site import (
    PART_BYTES,
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
    heard_from_machine,
    say_here,
)

HANDSHAKE_S = 10.0


class Machine:
    """Another machine of the peer, while its line is there."""

    def __init__(self, name: str, streams: Streams) -> None:
        self.name = name
        self.is_idle = True  # it has no rank of ours
        self._end: Failed | None = None
        self._reader, self._writer = streams
        self._answers: asyncio.Queue[Wants | Has | None] = asyncio.Queue()  # None: it is gone
        self._to_rank_0: asyncio.StreamWriter | None = None

    def send(self, message: ToMachine) -> None:
        if not self._writer.is_closing():  # whoever listens to it knows, and says so
            self._writer.write(frame(message))

    async def listen(self, on_idle: Callable[[], None]) -> str:
        """Pass on what its ranks say, until its line has ended; return why it has."""
        try:
            while True:
                message = await heard_from_machine(self._reader)
                self._hear(message)
                if isinstance(message, Idle):
                    on_idle()
        except TimeoutError:
            return "no word has come from it of late"
        except ConnectionLost:
            return "its line has ended"
        except ProtocolError as error:
            return str(error)

    def end(self, why: str) -> None:
        """Tell whoever waits for it that it is gone."""
        self._answers.put_nowait(None)
        self._end = Failed(reason=f"machine {self.name} of this peer is gone: {why}", hint="")
        self._tell_rank_0(self._end)
        self._writer.close()

    def _hear(self, message: FromMachine) -> None:
        match message:
            case Here() | Came():
                pass
            case Idle():
                self.is_idle = True
            case Wants() | Has():
                self._answers.put_nowait(message)
            case Failed():
                self._tell_rank_0(
                    replace(message, reason=f"on machine {self.name}: {message.reason}")
                )
            case of_a_rank:
                self._tell_rank_0(of_a_rank)

    def _tell_rank_0(self, message: FromMachine) -> None:
        if self._to_rank_0 is not None:
            self._to_rank_0.write(frame(message))

    async def prepare(self, dataset: Path) -> None:
        """Return when it has the dataset of that folder.

        Raises:
            TrainerDied: it is gone.
        """
        manifest = await asyncio.to_thread((dataset / MANIFEST_FILE).read_bytes)
        self.send(Offer(manifest=manifest))
        if isinstance(await self._answer(), Wants):
            with suppress(OSError):  # of its line: it is gone, as the answer will say
                await self._send_blobs(dataset, manifest)
            await self._answer()

    async def _send_blobs(self, dataset: Path, manifest: bytes) -> None:
        for blob in blobs_needed(manifest):
            with (dataset / blob.file).open("rb") as file:
                while data := await asyncio.to_thread(file.read, PART_BYTES):
                    self.send(Part(data=data))
                    await self._writer.drain()

    async def _answer(self) -> Wants | Has:
        answer = await self._answers.get()
        if answer is None:
            assert self._end is not None
            raise TrainerDied(self._end.reason)
        return answer

    async def follow(self, line: Streams) -> None:
        """Pass on what rank 0 says on this line, until it ends; then the ranks there end, too."""
        reader, self._to_rank_0 = line
        self.is_idle = False
        if self._end is not None:
            self._tell_rank_0(self._end)
        try:
            with suppress(ConnectionLost, ProtocolError):
                while True:
                    self.send(await receive_command(reader))
        finally:
            self._to_rank_0.close()
            self._to_rank_0 = None
            self.send(Stop())


class Machines:
    """Those that are there. `start` is a StartTrainer; `on_change` hears when one comes or goes."""

    def __init__(self, peer: PeerConfig, key: SiteKey, *, emit: Emit) -> None:
        self.on_change: Callable[[], object] = lambda: None
        self._num_wanted = peer.machines - 1
        self._key = key
        self._address = ipv4_of(key.address)
        self._emit = emit
        self._present: list[Machine] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def num_missing(self) -> int:
        return max(0, self._num_wanted - len(self._present))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Let machines come for as long as the body runs; then all of them are sent away.

        Raises:
            RunError: the port is taken, or the address is not one of this machine.
        """
        try:
            server = await asyncio.start_server(
                self._come,
                self._address,
                self._key.port,
                ssl=server_context(self._key.identity()),
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        except OSError as error:
            raise RunError(
                f"cannot wait for the other machines at {self._key.address}:{self._key.port}: "
                f"{error.strerror}",
                hint="--site takes an address of this machine within its site, and a free port",
            ) from error
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # Who has no certificate of this site may still shake hands.
            if writer.get_extra_info("ssl_object").getpeercert(binary_form=True):
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # it is over; nobody waits for this task but us
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError, ConnectionLost, ProtocolError):
            came = await heard_from_machine(reader)
            if isinstance(came, Came) and came.version == __version__:
                await self._serve_machine(Machine(came.name, (reader, writer)), writer)
            elif isinstance(came, Came):
                reason = f"it has atoll {came.version}, and the first machine {__version__}"
                writer.write(frame(Refused(reason=reason)))

    async def _serve_machine(self, machine: Machine, writer: asyncio.StreamWriter) -> None:
        saying = asyncio.create_task(say_here(writer))
        self._present.append(machine)
        self._emit(MachineCame(name=machine.name, num_missing=self.num_missing))
        self._note_change()
        try:
            why = await machine.listen(self._changed.set)
        finally:
            saying.cancel()
            self._present.remove(machine)
        self._emit(MachineLost(name=machine.name, reason=why))
        self._note_change()  # first: the trainer, which hears of it now, is not to be missed
        machine.end(why)

    def _note_change(self) -> None:
        self._changed.set()
        self.on_change()

    async def start(
        self,
        config: RunConfig,
        peer: PeerConfig,
        *,
        vectors: SharedVectors,
        dataset: Path,
        log_path: Path,
    ) -> Trainer:
        """Start a trainer over all machines, once they are there.

        Raises:
            TrainerDied: it ended, or a machine is gone again, or it was not ready in time.
        """
        others = await self._gather()
        for machine in others:
            await machine.prepare(dataset)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(0)
            port = listening.getsockname()[1]
            addresses = tuple(Address(port=port, token=token_hex(16)) for _ in others)
            site = Site(address=self._address, others=addresses)
            connecting = asyncio.create_task(self._connect(listening, others, addresses))
            try:
                return await Trainer.start(
                    config, peer, vectors=vectors, dataset=dataset, log_path=log_path, site=site
                )
            finally:
                connecting.cancel()
                await asyncio.wait([connecting])

    async def _gather(self) -> list[Machine]:
        """Return as many as are wanted, all of them idle."""
        while True:
            idle = [machine for machine in self._present if machine.is_idle]
            if len(idle) >= self._num_wanted:
                return idle[: self._num_wanted]
            self._changed.clear()
            await self._changed.wait()

    async def _connect(
        self, listening: socket.socket, others: list[Machine], addresses: tuple[Address, ...]
    ) -> None:
        """Join the lines of rank 0, which come in this order, to those of the machines."""
        for machine, address in zip(others, addresses, strict=True):
            line = await accept(listening, token=address.token)
            task = asyncio.create_task(machine.follow(line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def ipv4_of(address: str) -> str:
    """Return the numbers of an address or a name.

    Raises:
        ConfigError: there are none.
    """
    hint = "--site takes an IPv4 address, or a name that has one, in the network of the site"
    try:
        numbers = socket.gethostbyname(address)
    except OSError as error:
        raise ConfigError(f"no IPv4 address: {address}", hint=hint) from error
    if numbers.startswith("127.") and address not in {numbers, "localhost"}:
        # As some systems have it in /etc/hosts for their own name: nobody else reaches that.
        raise ConfigError(f"{address} is {numbers} here, where no other machine is", hint=hint)
    return numbers
