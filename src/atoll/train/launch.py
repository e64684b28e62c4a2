"""The agent's handle on its trainer: start it, command it, notice when it is gone.

    trainer = await Trainer.start(config, peer, vectors=..., dataset=..., log_path=...)
    training = asyncio.create_task(trainer.train(Train(...), on_step=report))
    await trainer.snapshot(0, num_values)
    ... exchange vectors.snapshot_N, write vectors.global_N ...
    await trainer.merge("carry", 0, num_values)
    done = await training

One task listens to the trainer and hands each answer to the command of its kind that waits longest.
So commands of different kinds may wait at the same time, and one may be cancelled at any moment:
its answer is then heard and dropped.
"""

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from secrets import compare_digest, token_hex
from typing import BinaryIO, Final, Protocol, TypeAlias, TypeVar

from atoll import system
from atoll.config import PeerConfig, RunConfig
from atoll.errors import AtollError, ConnectionLost, ProtocolError, RunError
from atoll.train.channel import (
    Address,
    Answer,
    Attach,
    Declinable,
    Declined,
    Evaluate,
    Evaluated,
    Failed,
    Halt,
    How,
    Load,
    Loaded,
    Merge,
    Merged,
    Quit,
    Save,
    Saved,
    Setup,
    Site,
    Snapped,
    Snapshot,
    Started,
    Stepped,
    ToTrainer,
    Train,
    Trained,
    frame,
    receive,
    write_address,
)
from atoll.train.shared import SharedVectors

START_S: Final = 300.0  # importing torch and waking a GPU, on a slow disk
STOP_S: Final = 5.0
STRANGER_S: Final = 5.0

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
OnStep: TypeAlias = Callable[[Stepped], None]
Inbox: TypeAlias = "asyncio.Queue[Stepped | Answer | None]"  # None: there will be no answer
_Answer = TypeVar("_Answer", bound=Answer)


class TrainerDied(AtollError):
    """The trainer's process is gone, or cannot be started. The agent still has all it needs.

    `lasting`: the next one would not live either.
    """

    def __init__(self, message: str, *, hint: str = "", lasting: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.lasting = lasting


class OtherEnd(Protocol):
    """The process at the other end of the channel."""

    @property
    def pid(self) -> int: ...

    def kill(self) -> None:
        """End it at once, or our connection to it."""
        ...

    async def ended(self) -> Failed:
        """Return, once the connection has ended, what can be said about it."""
        ...


@dataclass(frozen=True, slots=True)
class Child:
    """A process of ours, and where in its log it began to write."""

    process: Process
    log_path: Path
    log_start: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        kill(self.process)

    async def ended(self) -> Failed:
        return what_happened(self, await end_of(self.process))


class Trainer:
    """A running trainer. `start` it, and `stop` it at the end."""

    def __init__(self, other: OtherEnd, streams: Streams) -> None:
        self.started = Started(device="", threads=0)
        self._other = other
        self._reader, self._writer = streams
        # Of the commands that are not answered yet, by the answer to them, oldest first.
        self._inboxes: defaultdict[type[object], deque[Inbox]] = defaultdict(deque)
        self._end: Failed | None = None
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls,
        config: RunConfig,
        peer: PeerConfig,
        *,
        vectors: SharedVectors,
        dataset: Path,
        log_path: Path,
        site: Site | None = None,
    ) -> "Trainer":
        """Start the process; return once the model is on its device, with the weights of global_N.

        Raises:
            TrainerDied: it ended, or was not ready after `START_S`.
        """
        setup = Setup(
            config=config,
            peer=peer,
            vectors=str(vectors.path),
            dataset=str(dataset),
            site=site,
        )
        try:
            async with asyncio.timeout(START_S):
                trainer = cls(*await launch(log_path))
                await trainer.set_up(setup)
        except TimeoutError as error:
            raise TrainerDied(
                f"the trainer was not ready after {START_S:.0f} s", hint=f"its log: {log_path}"
            ) from error
        return trainer

    async def set_up(self, setup: Setup) -> None:
        """Return once it is ready; if it cannot be, it is gone.

        Raises:
            TrainerDied: it ended.
        """
        try:
            self.started = await self._ask(setup, Started)
        except BaseException:
            await self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._other.pid

    async def train(self, work: Train, *, on_step: OnStep) -> None:
        """Return when the work is done or halted. One work at a time.

        Raises:
            TrainerDied: the process is gone. As in all commands.
        """
        try:
            await self._ask(work, Trained, on_step=on_step)
        except BaseException:  # whoever waited for the work is not interested any more
            self.halt()
            raise

    def halt(self) -> None:
        """Let the work end after the step that is under way; `train` then returns."""
        self._send(Halt())

    async def snapshot(self, start: int, stop: int) -> float:
        """Return when that part of the local weights is in snapshot_N.

        Returns the seconds that training stood still for it.
        """
        return (await self._ask(Snapshot(start=start, stop=stop), Snapped)).seconds

    async def merge(self, how: How, start: int, stop: int, *, alpha: float = 0.0) -> float:
        """Return when that part of the local weights has taken over the global ones; see `Merge`.

        Returns the seconds that training stood still for it.
        """
        merge = Merge(how=how, start=start, stop=stop, alpha=alpha)
        return (await self._ask(merge, Merged)).seconds

    async def save(self, path: Path) -> None:
        """Return when the optimizer's state of this moment is safe in the file.

        Raises:
            RunError: it cannot be written. The trainer serves on.
        """
        await self._ask(Save(path=str(path)), Saved)

    async def load(self, path: Path) -> None:
        """Return when the optimizer has the state of the file. Not while it trains.

        Raises:
            RunError: it is damaged, or not there; the optimizer keeps what it has.
        """
        await self._ask(Load(path=str(path)), Loaded)

    async def evaluate(self, state: Path) -> Evaluated:
        """Return how good the saved state in the file is, found out between two steps.

        Raises:
            RunError: it cannot be read, or this trainer cannot say. It serves on.
        """
        return await self._ask(Evaluate(state=str(state)), Evaluated)

    async def death(self) -> TrainerDied:
        """Return how it died, once it has, also while nobody waits for an answer."""
        await asyncio.wait([self._listener])
        return self._died()

    def kill(self) -> None:
        """End the process at once; whoever waits for an answer learns that it died."""
        self._other.kill()

    async def stop(self) -> None:
        """End the process, at its next step boundary or after `STOP_S`. It has nothing to save."""
        self._send(Quit())
        try:
            await asyncio.wait([self._listener], timeout=STOP_S)
        finally:
            self._other.kill()
            await asyncio.wait([self._listener])

    def _died(self) -> TrainerDied:
        assert self._end is not None
        return TrainerDied(self._end.reason, hint=self._end.hint, lasting=self._end.lasting)

    def _send(self, message: ToTrainer) -> None:
        if self._end is None:
            self._writer.write(frame(message))

    async def _ask(
        self, command: ToTrainer, answer: type[_Answer], *, on_step: OnStep | None = None
    ) -> _Answer:
        inbox: Inbox = asyncio.Queue()
        if self._end is None:
            self._inboxes[answer].append(inbox)
            self._send(command)
        else:
            inbox.put_nowait(None)
        while isinstance(message := await inbox.get(), Stepped):
            if on_step is not None:
                on_step(message)
        if message is None:
            raise self._died()
        if isinstance(message, Declined):
            raise RunError(message.reason, hint=message.hint)
        assert isinstance(message, answer), f"{message} is no answer to {command}"
        return message

    async def _listen(self) -> None:
        """Deal out the answers for as long as the process lives; then tell those who still wait."""
        last_words: Failed | None = None
        try:
            last_words = await self._deal_out()
        finally:
            self._writer.close()
            end = await self._other.ended()
            self._end = last_words or end
            for inbox in chain(*self._inboxes.values()):
                inbox.put_nowait(None)
            self._inboxes.clear()

    async def _deal_out(self) -> Failed | None:
        """Return when the connection has ended, with what the trainer said last, if it did."""
        with suppress(ConnectionLost, ProtocolError):
            while not isinstance(message := await receive(self._reader), Failed):
                assert not isinstance(message, Attach)
                inboxes = self._inboxes[answer_of(message)]
                assert inboxes, f"an answer that nobody asked for: {message}"
                inboxes[0].put_nowait(message)
                if not isinstance(message, Stepped):
                    inboxes.popleft()
            return message
        return None


def answer_of(message: Stepped | Answer) -> type[Answer]:
    """Return for which answer the command waits that this message is for."""
    match message:
        case Stepped():
            return Trained
        case Declined(command=command):
            answers: dict[Declinable, type[Answer]]
            answers = {"save": Saved, "load": Loaded, "evaluate": Evaluated}
            return answers[command]
        case _:
            return type(message)


async def launch(log_path: Path) -> tuple[Child, Streams]:
    """Start the process, and wait until it has connected.

    Raises:
        TrainerDied: it ended before.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        address = Address(port=listening.getsockname()[1], token=token_hex(16))
        child = await spawn(address, log_path)
        try:
            return child, await attached(child, listening, token=address.token)
        except BaseException:
            kill(child.process)
            await child.process.wait()
            raise


async def spawn(address: Address, log_path: Path) -> Child:
    """Start the process, and tell it where its agent waits."""
    with open_log(log_path) as log:
        log_start = log.tell()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a torch.py in the current directory is not the one that is meant
            "-m",
            "atoll.train.trainer",
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            **system.apart(),  # Ctrl-C is for the agent, also before the trainer ignores it
        )
    assert process.stdin is not None
    process.stdin.write(write_address(address))
    process.stdin.close()
    return Child(process, log_path, log_start)


async def attached(child: Child, listening: socket.socket, *, token: str) -> Streams:
    """Return the connection to the process.

    Raises:
        TrainerDied: it ended before it connected.
    """
    accepting = asyncio.create_task(accept(listening, token=token))
    exiting = asyncio.create_task(child.process.wait())
    try:
        await asyncio.wait([accepting, exiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        accepting.cancel()
        exiting.cancel()
        await asyncio.wait([accepting, exiting])
    if not accepting.cancelled():
        return accepting.result()
    end = what_happened(child, exiting.result())
    raise TrainerDied(end.reason, hint=end.hint)


async def accept(listening: socket.socket, *, token: str) -> Streams:
    """Return the first connection that knows the token; anybody on this machine can make one."""
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(listening)
        reader, writer = await asyncio.open_connection(sock=connection)
        is_ours = False
        try:
            with suppress(TimeoutError, ConnectionLost, ProtocolError):
                async with asyncio.timeout(STRANGER_S):
                    first = await receive(reader)
                is_ours = isinstance(first, Attach) and is_same(first.token, token)
            if is_ours:
                return reader, writer
        finally:
            if not is_ours:
                writer.close()


def is_same(token: str, expected: str) -> bool:
    return compare_digest(token.encode(), expected.encode())


async def end_of(process: Process) -> int:
    """Return the exit code of a process that should end by itself, and is killed if it does not."""
    try:
        async with asyncio.timeout(STOP_S):
            return await process.wait()
    except TimeoutError:
        kill(process)
        return await process.wait()


def kill(process: Process) -> None:
    # Not process.kill(): before its signal that asks how the process ended, if it just has, and
    # asyncio, which asks as well, is then told of exit code 255.
    if process.returncode is None:
        system.kill(process.pid)


def what_happened(child: Child, exit_code: int) -> Failed:
    """Return the best account of the end of a process that gave none itself."""
    hint = f"its log: {child.log_path}"
    if exit_code < 0:
        return Failed(
            reason=f"the trainer was ended by a signal: {signal.strsignal(-exit_code)}",
            hint=f"if nobody did that, it was short of memory: try a smaller --micro-batch; {hint}",
        )
    said = child.log_path.read_bytes()[child.log_start :].decode(errors="replace").split("\n")
    last_line = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    return Failed(reason=f"the trainer ended with exit code {exit_code}: {last_line}", hint=hint)


def open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")
