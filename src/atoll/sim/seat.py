"""A program on a machine, life after life: it starts, freezes, dies in the middle of a line.

Seat.start -> Process: Program.run(seat) --> it ends by itself, or die()
Program.release: what the kernel lets go of when the process is gone
"""

import asyncio
from contextvars import copy_context
from typing import Protocol

from atoll.errors import AtollError
from atoll.ids import PeerId
from atoll.sim.loop import Condition, Process, VirtualLoop
from atoll.sim.network import Machine, Network
from atoll.sim.transport import SimTransport

LEFT = "it left"  # because somebody stopped it
RESTART_S = 2.0  # until a service that has failed is started again


class Program(Protocol):
    async def run(self, seat: "Seat") -> bool:
        """Do all that the program does, in a new process; return whether there is no more to do."""
        ...

    def release(self) -> None:
        """Let go of locks and open files: the process is gone."""
        ...


class Seat:
    """`process` is the present life; None: it is not running. `ends` tells how lives ended.

    Empty: it came to its end by itself. Deaths are counted, but are no ends. A service is started
    again when it has failed.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        program: Program,
        network: Network,
        *,
        is_service: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.name = name
        self.machine = machine
        self.condition = Condition()
        self.process: Process | None = None
        self.ends: list[str] = []
        self.num_deaths = 0
        self._program = program
        self._network = network
        self._is_service = is_service
        self._loop = loop
        self._context = copy_context()  # of whoever starts it again: no process of its own
        self._life: asyncio.Task[None] | None = None
        self._transports: list[SimTransport] = []

    @property
    def is_running(self) -> bool:
        return self.process is not None

    @property
    def is_frozen(self) -> bool:
        return self.process is not None and not self.process.is_running

    @property
    def is_done(self) -> bool:
        """Whether its last life came to its end by itself."""
        return not self.is_running and self.ends[-1:] == [""]

    def transport(self, peer: PeerId | None) -> SimTransport:
        """Return what the present process has of the network."""
        assert self.process is not None, "a process dials and listens"
        transport = SimTransport(self._network, self.machine, self.process, peer)
        self._transports.append(transport)
        return transport

    def start(self) -> None:
        """Start the program, unless it runs or is done."""
        if not self.is_done:
            self.start_anew()

    def start_anew(self) -> None:
        """Start the program, unless it runs, also if it was done."""
        if not self.is_running:
            self.process = Process(self.name, self._loop, self.condition)
            self._life = self.process.spawn(self._live())

    def die(self) -> None:
        """End the process at once, wherever it is."""
        if self.is_running:
            self.num_deaths += 1
            self._end()

    def reaches(self, machine: Machine) -> bool:
        return self._network.reaches(self.machine, machine)

    def leave(self) -> None:
        """Stop the program as a person does, who then waits for it."""
        if self._life is not None:
            self._life.cancel()

    def freeze(self) -> None:
        if self.process is not None:
            self.process.freeze()
            self.machine.frozen = True
            self._network.changed()

    def thaw(self) -> None:
        if self.process is not None:
            self.process.thaw()
            self.machine.frozen = False
            self._network.changed()

    def flicker(self) -> None:
        """Break all its connections."""
        for transport in self._transports:
            for connection in list(transport.connections):
                connection.cut()

    async def _live(self) -> None:
        end = ""
        try:
            end = "" if await self._program.run(self) else LEFT
        except AtollError as error:
            end = f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            end = LEFT
        except Exception as error:  # noqa: BLE001 - a bug: the judge of the run gets it
            context = {"message": f"{self.name} ended", "exception": error}
            self._loop.call_exception_handler(context)
            end = f"bug: {error!r}"
        self.ends.append(end)
        self._end()
        if self._is_service and end not in ("", LEFT):
            self._loop.call_later(RESTART_S, self._start_again, context=self._context)

    def _start_again(self) -> None:
        if self.machine.is_up:  # else it starts with the machine
            self.start()

    def _end(self) -> None:
        assert self.process is not None
        self.process.die()
        for transport in self._transports:
            transport.die()
        self._transports.clear()
        self._program.release()
        self.process = self._life = None
        self.machine.frozen = False
