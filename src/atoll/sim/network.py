"""A network in virtual time: machines with lines, what is on its way between them, and its faults.

    Network.join(name, link) -> Machine       Path: one direction of a connection, in order
    flow(machine, machine, bytes)             shares the lines fairly with all others, as TCP does

A transfer is one event, not one for each packet: the rates change when a flow begins or ends. What
TCP hides stays hidden: a lost packet is a delay, a line that is cut is silence until it heals.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from random import Random
from typing import TYPE_CHECKING, Final, TypeAlias

from atoll.net.wire import Message
from atoll.sim.links import (
    SEGMENT_BYTES,
    Demand,
    Link,
    loss_between,
    most_bytes_per_s,
    round_trip_s,
    share_out,
)

if TYPE_CHECKING:
    from atoll.sim.transport import SimListener

RETRANSMIT_S: Final = 0.2  # the least that TCP waits before it sends a packet again (Linux)
LOOPBACK_S: Final = 5e-5
BURST_BYTES: Final = 10 * SEGMENT_BYTES  # that TCP sends without a word from there (RFC 6928)
ALMOST_NOTHING: Final = 0.5  # bytes that rounding has left of a flow


class Harm(Enum):
    """What can happen to a message.

    A byte that is lost on the way breaks a TLS connection. What is `CORRUPT` was so before it was
    encrypted: bad memory, a bad disk.
    """

    LOSE = "lose"
    REPEAT = "repeat"
    DELAY = "delay"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Tampering:
    harm: Harm
    seconds: float = 0.0  # of a delay


@dataclass(eq=False)
class Machine:
    """Something with a line. `is_up`: whether its kernel answers, whatever its processes do.

    `place` is what it is near to; empty: it is as near to all places.

    Small payloads have left by `up_free_at`, and arrived by `down_free_at`. `most_connections` are
    those that one of its processes had at once.
    """

    name: str
    link: Link
    number: int
    place: str = ""
    is_up: bool = True
    frozen: bool = False  # what runs on it sends nothing, and reads nothing
    up_free_at: float = 0.0
    down_free_at: float = 0.0
    pace_bytes_per_s: float = inf  # of all that it sends, as its member allows itself
    most_connections: int = 0


@dataclass(eq=False)
class Pace:
    """What a sender allows itself on a connection."""

    bytes_per_s: float = inf


@dataclass(eq=False)
class Flow:
    """Bytes on their way. `done` is set when the last one has got through, or never will."""

    sender: Machine
    receiver: Machine
    left_bytes: float
    pace: Pace
    done: "asyncio.Future[None]"
    rate: float = 0.0


Tamper: TypeAlias = Callable[[Machine, Machine, Message], Tampering | None]


def _leave_alone(sender: Machine, receiver: Machine, message: Message) -> None:
    """Do no harm to any message."""


@dataclass
class Network:
    """`rng` decides on jitter and losses. Faults: `cut`, `heal`; see `faults.py` for the others.

    Between two places a packet takes `between_s` more. `tells_round_trips`: whether whoever dials
    hears how far away the other one is.
    """

    rng: Random
    between_s: float = 0.0
    tells_round_trips: bool = True
    tamper: Tamper = _leave_alone
    machines: dict[str, Machine] = field(default_factory=dict)
    listeners: "dict[tuple[str, int], SimListener]" = field(default_factory=dict)
    _cut: set[frozenset[str]] = field(default_factory=set)
    _flows: dict[Flow, None] = field(default_factory=dict)
    _paths: dict["Path", None] = field(default_factory=dict)
    _as_of: float = 0.0  # up to when the flows are accounted for
    _timer: asyncio.TimerHandle | None = None
    _is_due: bool = False

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # the network is part of no process
        self._news = asyncio.Event()

    def join(self, name: str, link: Link, place: str = "") -> Machine:
        machine = Machine(name, link, len(self.machines), place)
        self.machines[name] = machine
        return machine

    # --- who reaches whom -----------------------------------------------------------------------

    def reaches(self, one: Machine, other: Machine) -> bool:
        """Return whether packets get from one to the other now."""
        cut = frozenset((one.name, other.name)) in self._cut
        return one.is_up and other.is_up and not cut

    def cut(self, one: str, other: str) -> None:
        """Let no packet through between these two; nobody is told."""
        self._cut.add(frozenset((one, other)))
        self.changed()

    def heal(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))
        self.changed()

    def changed(self) -> None:
        """Look again at what can move: lines, machines or their processes have changed."""
        self._news.set()
        self._news = asyncio.Event()
        self.share_out_soon()
        for path in list(self._paths):
            path.look_again()

    async def until_reached(self, one: Machine, other: Machine) -> None:
        """Return once packets get from one to the other."""
        while not self.reaches(one, other):
            await self._news.wait()

    # --- flows ----------------------------------------------------------------------------------

    def flow(self, sender: Machine, receiver: Machine, num_bytes: int, *, pace: Pace) -> Flow:
        """Begin to move so many bytes; `drop` the flow when its `done` is no longer awaited."""
        flow = Flow(sender, receiver, num_bytes, pace, self._loop.create_future())
        self._flows[flow] = None
        self.share_out_soon()
        return flow

    def burst_s(self, sender: Machine, receiver: Machine, num_bytes: int, *, pace: Pace) -> float:
        """Return how long a small payload takes: at both lines it queues behind others like it.

        They are sent one after the other, so that thousands of them need no sharing out.
        """
        now = self._loop.time()
        up_s, down_s = (
            num_bytes / rate
            for rate in (sender.link.up_bytes_per_s, receiver.link.down_bytes_per_s)
        )
        sender.up_free_at = max(now, sender.up_free_at) + up_s
        receiver.down_free_at = max(now, receiver.down_free_at) + down_s
        through_at = max(sender.up_free_at, receiver.down_free_at)
        return max(through_at - now, num_bytes / pace.bytes_per_s)

    def drop(self, flow: Flow) -> None:
        """Take the flow off the line; the rest of it does not arrive."""
        self._flows.pop(flow, None)
        if not flow.done.done():
            flow.done.set_result(None)
        self.share_out_soon()

    def share_out_soon(self) -> None:
        """Share the lines out anew, once for all that happens at this moment."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._share_out, context=self._context)

    def _share_out(self) -> None:
        self._is_due = False
        self._account()
        moving = [f for f in self._flows if self._moves(f)]
        demands = [
            Demand(flow.sender.number, flow.receiver.number, self._most(flow)) for flow in moving
        ]
        capacity = {}
        for flow in moving:
            sender = flow.sender
            up_bytes_per_s = min(sender.link.up_bytes_per_s, sender.pace_bytes_per_s)
            capacity["up", sender.number] = up_bytes_per_s
            capacity["down", flow.receiver.number] = flow.receiver.link.down_bytes_per_s
        for flow in self._flows:
            flow.rate = 0.0
        for flow, rate in zip(moving, share_out(demands, capacity), strict=True):
            flow.rate = rate
        self._set_timer()

    def _moves(self, flow: Flow) -> bool:
        sender, receiver = flow.sender, flow.receiver
        stopped = sender.frozen or receiver.frozen or flow.done.done()
        return not stopped and self.reaches(sender, receiver)

    def _most(self, flow: Flow) -> float:
        sender, receiver = flow.sender, flow.receiver
        most = most_bytes_per_s(sender.link, receiver.link, apart_s=self.apart_s(sender, receiver))
        return min(flow.pace.bytes_per_s, most)

    def _account(self) -> None:
        """Let the flows have moved what they have moved by now; finish those that are through."""
        now = self._loop.time()
        passed_s, self._as_of = now - self._as_of, now
        for flow in self._flows:
            flow.left_bytes -= flow.rate * passed_s
            if flow.left_bytes <= ALMOST_NOTHING and not flow.done.done():
                flow.done.set_result(None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        ends = [f.left_bytes / f.rate for f in self._flows if f.rate > 0]
        self._timer = None
        if ends:
            wait_s = max(0.0, min(ends))
            self._timer = self._loop.call_later(wait_s, self._share_out, context=self._context)

    # --- delays ---------------------------------------------------------------------------------

    def apart_s(self, one: Machine, other: Machine) -> float:
        """Return what a packet takes from place to place, besides what both lines take."""
        is_far = one.place and other.place and one.place != other.place
        return self.between_s if is_far else 0.0

    def latency_s(self, one: Machine, other: Machine) -> float:
        """Return how long one small packet takes, drawn anew each time."""
        if one is other:
            return LOOPBACK_S
        jitter_s = self.rng.uniform(0.0, one.link.jitter_s + other.link.jitter_s)
        apart_s = self.apart_s(one, other)
        latency_s = one.link.latency_s + other.link.latency_s + apart_s + jitter_s
        if self.rng.random() < loss_between(one.link, other.link):
            latency_s += RETRANSMIT_S + round_trip_s(one.link, other.link, apart_s=apart_s)
        return latency_s


class Path:
    """One direction of a connection: what is put in comes out at the other end, in order.

    While the line is cut, it is kept and sent again; a machine that is off gets nothing any more.
    """

    def __init__(
        self,
        network: Network,
        sender: Machine,
        receiver: Machine,
        deliver: Callable[[object], None],
    ) -> None:
        self._network = network
        self._sender, self._receiver = sender, receiver
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[float, object]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._last_at = 0.0
        network._paths[self] = None

    def put(self, item: object, *, late_s: float = 0.0) -> None:
        """Send this; `late_s` is on top of what the line takes."""
        network = self._network
        arrives_at = self._loop.time() + late_s + network.latency_s(self._sender, self._receiver)
        self._last_at = max(self._last_at, arrives_at)
        self._under_way.append((self._last_at, item))
        self.look_again()

    def look_again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._under_way and self._network.reaches(self._sender, self._receiver):
            # What a cut has held up is sent again once TCP tries.
            at = max(self._under_way[0][0], self._loop.time())
            self._timer = self._loop.call_at(at, self._arrive, context=self._network._context)

    def close(self) -> None:
        """Forget what is under way."""
        self._under_way.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._network._paths.pop(self, None)

    def _arrive(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._under_way and self._under_way[0][0] <= now:
            _, item = self._under_way.popleft()
            self._deliver(item)
        self.look_again()
