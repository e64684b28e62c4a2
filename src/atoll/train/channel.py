"""What an agent and its trainer say to each other, and the bytes of it.

    agent                                trainer
      |   (starts it; port and token on its standard input)
      | <------------- Attach(token) ------ |
      | -- Setup -------------------------> | <- Started
      | -- Train(first_step, spans) ------> | <- Stepped, ..., Trained
      | -- Snapshot(start, stop) ---------> | <- Snapped    local weights to snapshot_N
      | -- Merge(how, start, stop) -------> | <- Merged     local weights from global_N
      | -- Save(path) / Load(path) -------> | <- Saved / Loaded / Declined
      | -- Evaluate(state) ---------------> | <- Evaluated / Declined
      | -- Quit --------------------------> |

Each command has one answer. Those to commands of one kind come in their order; others may overtake
them: `Train` and `Save` take time, and meanwhile the trainer carries out `Snapshot`, `Merge` and
`Save` between two steps. `Halt` ends the work at the next step boundary; it has no answer, so one
that comes too late is harmless.

A frame is four bytes of length (big-endian) and a msgpack map with its tag under "t", over a TCP
connection on the loopback interface: the one kind of pipe that every system can poll.
"""

import asyncio
import select
import socket
from threading import Lock
from typing import Annotated, Final, Generic, Literal, TypeAlias, TypeVar

from msgspec import Meta, Struct, json, msgpack

from atoll.config import PeerConfig, RunConfig
from atoll.errors import ConnectionLost, ProtocolError
from atoll.train.work import Span
from atoll.units import MIB

MAX_FRAME_BYTES: Final = 4 * MIB
LAST_STEP: Final = 2**63 - 1  # no run has so many
NotNegative = Annotated[int, Meta(ge=0)]
How: TypeAlias = Literal["replace", "carry", "blend"]
Declinable: TypeAlias = Literal["save", "load", "evaluate"]


class Address(Struct, frozen=True, kw_only=True):
    """Where the agent waits for its trainer: one line of JSON on the trainer's standard input."""

    port: int
    token: str


# --- agent to trainer ----------------------------------------------------------------------------


class Seat(Struct, frozen=True, kw_only=True):
    """Which of the ranks of a peer a process is, and where all of them meet.

    Each of the `num_machines` has as many devices, and so ranks, which are numbered together.
    """

    rank: NotNegative
    num_ranks: NotNegative
    store: str  # a file, or, for several machines, host:port
    num_machines: NotNegative = 1

    @property
    def num_devices(self) -> int:
        """Of each machine."""
        return self.num_ranks // self.num_machines

    @property
    def device(self) -> int:
        """Which one of its machine."""
        return self.rank % self.num_devices


class Site(Struct, frozen=True, kw_only=True):
    """The machines of a peer, as one of them sees it."""

    address: str  # of this machine, where the ranks of the others reach its own
    others: tuple[Address, ...] = ()  # the lines to the other machines; on the first one alone


class Setup(Struct, frozen=True, kw_only=True, tag_field="t", tag="setup"):
    config: RunConfig
    peer: PeerConfig
    vectors: str  # the file of SharedVectors; empty: they are on another machine
    dataset: str  # the directory of the dataset
    seat: Seat | None = None  # None: it is the agent who says so; the trainer starts other ranks
    site: Site | None = None  # None: this machine is the only one of the peer


class Train(Struct, frozen=True, kw_only=True, tag_field="t", tag="train"):
    """Train on these samples, in this order; the first inner step is `first_step` of the run.

    Where they are more steps than it takes to `last_step`, those beyond it count as that one.
    """

    first_step: NotNegative
    last_step: NotNegative = LAST_STEP
    spans: tuple[Span, ...]
    then: tuple[Span, ...] = ()  # leased as well, and likely to come next: to be read meanwhile


class Halt(Struct, frozen=True, kw_only=True, tag_field="t", tag="halt"): ...


class Snapshot(Struct, frozen=True, kw_only=True, tag_field="t", tag="snapshot"):
    """Copy the local weights `start` to `stop - 1` of the flat vector to snapshot_N."""

    start: NotNegative
    stop: NotNegative


class Merge(Struct, frozen=True, kw_only=True, tag_field="t", tag="merge"):
    """Take over the global weights `start` to `stop - 1`; see `merge`. Adam's moments stay."""

    how: How
    start: NotNegative
    stop: NotNegative
    alpha: float = 0.0  # of a blend


class Save(Struct, frozen=True, kw_only=True, tag_field="t", tag="save"):
    """Write the state of the inner optimizer to this file. Weights are the agent's to keep.

    It is the state between two steps; the next ones are taken while it is written.
    """

    path: str


class Load(Struct, frozen=True, kw_only=True, tag_field="t", tag="load"):
    """Go on with the state in this file. Not while it trains."""

    path: str


class Evaluate(Struct, frozen=True, kw_only=True, tag_field="t", tag="evaluate"):
    """Find out, between two steps, how good the saved state in this file is."""

    state: str


class Quit(Struct, frozen=True, kw_only=True, tag_field="t", tag="quit"): ...


# --- trainer to agent ----------------------------------------------------------------------------


class Attach(Struct, frozen=True, kw_only=True, tag_field="t", tag="attach"):
    token: str


class Started(Struct, frozen=True, kw_only=True, tag_field="t", tag="started"):
    """The model is on the device, with the weights of global_N and a fresh optimizer."""

    device: str
    threads: int
    peak_flops: float = 0.0  # per second, of all devices of the peer in such products; 0: unknown


class Stepped(Struct, frozen=True, kw_only=True, tag_field="t", tag="stepped"):
    step: int
    loss: float
    num_samples: int
    num_tokens: int
    seconds: float
    grad_norm: float


class Trained(Struct, frozen=True, kw_only=True, tag_field="t", tag="trained"):
    """The work is done, or was halted behind the last step that was `Stepped`."""


class Snapped(Struct, frozen=True, kw_only=True, tag_field="t", tag="snapped"):
    seconds: float  # that training stood still


class Merged(Struct, frozen=True, kw_only=True, tag_field="t", tag="merged"):
    seconds: float  # that training stood still


class Saved(Struct, frozen=True, kw_only=True, tag_field="t", tag="saved"): ...


class Loaded(Struct, frozen=True, kw_only=True, tag_field="t", tag="loaded"): ...


class Evaluated(Struct, frozen=True, kw_only=True, tag_field="t", tag="evaluated"):
    loss: float  # nats per token, on validation samples
    text: str  # that the model writes; empty: none was wanted, or the model is on several devices


class Declined(Struct, frozen=True, kw_only=True, tag_field="t", tag="declined"):
    """That was not possible; nothing changed, and the trainer serves on."""

    command: Declinable
    reason: str
    hint: str


class Failed(Struct, frozen=True, kw_only=True, tag_field="t", tag="failed"):
    """The last message of a trainer that cannot go on."""

    reason: str
    hint: str
    lasting: bool = False  # it would fail again: a person has to change something
    out_of_memory: bool = False


ToTrainer: TypeAlias = Setup | Train | Halt | Snapshot | Merge | Save | Load | Evaluate | Quit
Answer: TypeAlias = Started | Trained | Snapped | Merged | Saved | Loaded | Evaluated | Declined
FromTrainer: TypeAlias = Attach | Stepped | Answer | Failed

_to_trainer: msgpack.Decoder[ToTrainer] = msgpack.Decoder(ToTrainer)
_from_trainer: msgpack.Decoder[FromTrainer] = msgpack.Decoder(FromTrainer)
_Message = TypeVar("_Message")
_Said = TypeVar("_Said", bound=ToTrainer | FromTrainer)
_Heard = TypeVar("_Heard", bound=ToTrainer | FromTrainer)


def frame(message: Struct) -> bytes:
    """Return the bytes of a message, its length included."""
    payload = msgpack.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"{len(payload)} bytes, where a message has {MAX_FRAME_BYTES} at most")
    return len(payload).to_bytes(4) + payload


async def receive(reader: asyncio.StreamReader) -> FromTrainer:
    """Return the trainer's next message.

    Raises:
        ConnectionLost: there will be none.
        ProtocolError: it is none of this channel.
    """
    return await receive_by(reader, _from_trainer, other="the trainer")


async def receive_command(reader: asyncio.StreamReader) -> ToTrainer:
    """Return the next message of rank 0 to another rank; raises as above."""
    return await receive_by(reader, _to_trainer, other="rank 0")


async def receive_by(
    reader: asyncio.StreamReader, decoder: "msgpack.Decoder[_Message]", *, other: str
) -> _Message:
    """Return the next message of a connection with such frames; raises as above."""
    try:
        num_bytes = _checked(int.from_bytes(await reader.readexactly(4)))
        payload = await reader.readexactly(num_bytes)
    except (asyncio.IncompleteReadError, OSError) as error:
        raise ConnectionLost(f"{other} has closed the connection") from error
    return _decoded(payload, decoder)


def dial(address: Address) -> socket.socket:
    """Return a connection to the agent, which has been told who we are.

    Raises:
        ConnectionLost: the agent is gone.
    """
    try:
        connection = socket.create_connection(("127.0.0.1", address.port))
        # A small answer goes out at once (Nagle would hold it back for an earlier one).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(frame(Attach(token=address.token)))
    except OSError as error:
        raise ConnectionLost("the agent is gone") from error
    return connection


class Line(Generic[_Said, _Heard]):
    """One end of a connection, blocking: one thread receives, any may send."""

    def __init__(
        self, connection: socket.socket, decoder: "msgpack.Decoder[_Heard]", *, other: str
    ) -> None:
        """`other`: who is at the other end."""
        self._connection = connection
        self._decoder = decoder
        self._other = other
        self._sending = Lock()

    def send(self, message: _Said) -> None:
        """Send a message.

        Raises:
            ConnectionLost: the other end is gone.
        """
        try:
            with self._sending:
                self._connection.sendall(frame(message))
        except OSError as error:
            raise ConnectionLost(f"{self._other} is gone") from error

    def receive(self) -> _Heard:
        """Wait for the next message.

        Raises:
            ConnectionLost: the other end is gone.
            ProtocolError: it is none of this channel.
        """
        num_bytes = _checked(int.from_bytes(self._read(4)))
        return _decoded(self._read(num_bytes), self._decoder)

    def has_news(self) -> bool:
        """Return whether a message, or the end of the connection, is there to be received."""
        readable, _, _ = select.select([self._connection], [], [], 0)
        return bool(readable)

    def close(self) -> None:
        self._connection.close()

    def _read(self, num_bytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < num_bytes:
            try:
                part = self._connection.recv(num_bytes - len(parts))
            except OSError as error:
                raise ConnectionLost(f"{self._other} is gone") from error
            if not part:
                raise ConnectionLost(f"{self._other} is gone")
            parts += part
        return bytes(parts)


class Channel(Line[FromTrainer, ToTrainer]):
    """The trainer's end."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, _to_trainer, other="the agent")

    @classmethod
    def connect(cls, address: Address) -> "Channel":
        return cls(dial(address))


class FollowerLine(Line[ToTrainer, FromTrainer]):
    """The end of a trainer that leads another rank: to that one, it is the agent."""

    def __init__(self, connection: socket.socket, *, rank: int) -> None:
        super().__init__(connection, _from_trainer, other=f"rank {rank}")


def write_address(address: Address) -> bytes:
    """Return the line for the trainer's standard input."""
    return json.encode(address) + b"\n"


def read_address(line: bytes) -> Address:
    return json.decode(line, type=Address)


def _checked(num_bytes: int) -> int:
    if num_bytes > MAX_FRAME_BYTES:
        raise ProtocolError(f"{num_bytes} bytes, where a message has {MAX_FRAME_BYTES} at most")
    return num_bytes


def _decoded(payload: bytes, decoder: "msgpack.Decoder[_Message]") -> _Message:
    try:
        return decoder.decode(payload)
    except (ValueError, RecursionError) as error:  # bad types or UTF-8, and deep nesting
        raise ProtocolError(f"not a message between agent and trainer: {error}") from error
