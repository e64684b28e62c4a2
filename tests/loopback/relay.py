"""Lines between real processes that a test can slow, hold and cut: a TCP relay on loopback.

    peer x --dials--> 127.0.0.2:port of y  (relay)  --dials--> 127.0.0.1:port of y

Every member advertises the address of its relay, the host's built-in one, too, and peers dial the
host through one, so all that they say and hear passes here. Who has dialled is found by its socket
in /proc. A connection has two ends, and what goes from one to the other takes
the up of the one's line and the down of the other's. Words with the host have no weight: they pass
a line that is slow or held, and only a cut one stops them.

    with Lines() as lines:
        cluster.start_host(*lines.add_host())
        invite, *options = lines.add("carl", cluster.invite)
        carl = cluster.join_by(invite, "carl", *options)
        lines.own("carl", carl.pid)
        lines["carl"].hold_after(50_000)   # bytes; then it stands still, in the middle of a slice
        lines["carl"].cut()                # nothing moves any more, and nobody is told
        lines["carl"].bytes_per_s = 1000
        lines["carl"].heal()
"""

import asyncio
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from atoll.net.invite import Invite

HERE, REAL = "127.0.0.2", "127.0.0.1"
CHUNK_BYTES = 4096
POLL_S = 0.01
TRICKLE_S = 0.2  # between two pieces on a slow line
HOST = "host"  # whoever is no peer, and its built-in member: its line is perfect


@dataclass
class Line:
    """What a peer's connection to the rest of the world is like, now."""

    bytes_per_s: float = inf
    is_cut: bool = False
    # How many more bytes it may send before it stands still; None: as many as it likes.
    left_up: int | None = None
    sent: Counter[str] = field(default_factory=Counter)  # bytes, by who received them
    heals: int = 0
    _free_at: float = 0.0

    def hold_after(self, num_bytes: int) -> None:
        """Let it send so many bytes more to other members, and then stand still."""
        self.left_up = num_bytes

    @property
    def is_held(self) -> bool:
        return self.left_up is not None and self.left_up <= 0

    def cut(self) -> None:
        self.is_cut = True

    def heal(self) -> None:
        """Make the line perfect, for what is on it already, too."""
        self.bytes_per_s, self.is_cut, self.left_up = inf, False, None
        self._free_at = 0.0
        self.heals += 1

    @property
    def chunk_bytes(self) -> int:
        """How much passes at a time: a slow line trickles, it does not fall silent."""
        return int(max(1.0, min(CHUNK_BYTES, TRICKLE_S * self.bytes_per_s)))

    def reserve(self, num_bytes: int, now: float) -> float:
        """Return when so many bytes have passed, after those before them."""
        self._free_at = max(self._free_at, now) + num_bytes / self.bytes_per_s
        return self._free_at


class Lines:
    """The lines of all peers, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {HOST: Line()}
        self._pids: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> "Lines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __getitem__(self, name: str) -> Line:
        return self._lines[name]

    def add_host(self) -> tuple[str, ...]:
        """Return what `atoll host` needs so that its built-in member is behind a relay."""
        port = free_port()
        self._serve(port, towards=port, to=HOST)
        return ("--reducer-port", str(port), "--advertise", HERE)

    def add(self, name: str, invite: str) -> tuple[str, ...]:
        """Return what `atoll join` needs so that the peer is behind a line; begins with the invite.

        The relay that it dials for the host is its own: another peer would use another port.
        """
        self._lines[name] = Line()
        port = free_port()
        self._serve(port, towards=port, to=name)
        host = Invite.parse(invite)
        door = free_port()
        self._serve(door, towards=host.port, to=HOST, has_weight=False)
        behind = Invite(host=HERE, port=door, authority=host.authority, token=host.token)
        return (behind.format(), "--port", str(port), "--advertise", HERE)

    def own(self, name: str, pid: int) -> None:
        """Note that the connections of this process are those of the peer."""
        self._pids[name] = pid

    def _serve(self, port: int, *, towards: int, to: str, has_weight: bool = True) -> None:
        async def begin() -> None:
            server = await asyncio.start_server(
                lambda reader, writer: self._join(
                    reader, writer, towards=towards, to=to, has_weight=has_weight
                ),
                HERE,
                port,
            )
            self._servers.append(server)

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        towards: int,
        to: str,
        has_weight: bool,
    ) -> None:
        """Let one connection pass, until either side ends it."""
        by = await asyncio.to_thread(self._who, writer.get_extra_info("peername")[1])
        try:
            there, back = await asyncio.open_connection(REAL, towards)
        except OSError:
            writer.close()
            return
        ends = writer, back
        try:
            with suppress(OSError):
                await asyncio.gather(
                    self._pump(reader, back, (by, to), has_weight=has_weight),
                    self._pump(there, writer, (to, by), has_weight=has_weight),
                )
            for end in ends:
                end.close()
        except asyncio.CancelledError:  # the test is over
            for end in ends:
                end.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: tuple[str, str],
        *,
        has_weight: bool,
    ) -> None:
        by, to = ends
        out, into = self._lines[by], self._lines[to]
        while True:
            data = await source.read(min(out.chunk_bytes, into.chunk_bytes))
            await self._until_it_moves(out, into, may_hold=has_weight)
            if not data:
                sink.close()  # not before what is cut is whole again: that is a word, too
                return
            if has_weight:
                if out.left_up is not None:
                    out.left_up -= len(data)
                out.sent[to] += len(data)
                await self._pass(len(data), (out, into))
            sink.write(data)
            await sink.drain()

    async def _pass(self, num_bytes: int, lines: tuple[Line, Line]) -> None:
        """Return when so many bytes have passed on both lines; what is healed has no queue."""
        now = self._loop.time()
        waits = [(line, line.heals, line.reserve(num_bytes, now)) for line in lines]
        for line, heals, passed_at in waits:
            while True:
                left_s = passed_at - self._loop.time()
                if left_s <= 0 or line.heals != heals:
                    break
                await asyncio.sleep(min(left_s, POLL_S))

    async def _until_it_moves(self, out: Line, into: Line, *, may_hold: bool) -> None:
        while True:
            if not (out.is_cut or into.is_cut or (may_hold and out.is_held)):
                return
            await asyncio.sleep(POLL_S)

    def _who(self, port: int) -> str:
        """Return which peer has a socket with this port of its own."""
        inode = inode_of(port)
        for name, pid in self._pids.items():
            if inode in sockets_of(pid):
                return name
        return HOST

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close their sockets


def free_port() -> int:
    """Return a port that is free at both addresses."""
    while True:
        with socket.socket() as real, socket.socket() as here:
            real.bind((REAL, 0))
            port = int(real.getsockname()[1])
            with suppress(OSError):
                here.bind((HERE, port))
                return port


def inode_of(port: int) -> str:
    """Return the inode of the socket that has this port at its end of a connection."""
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[2].startswith("0200007F"):
            return fields[9]
    return ""


def sockets_of(pid: int) -> set[str]:
    """Return the inodes of the process's sockets."""
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found
