"""The process that computes: it serves one agent, and ends with it.

    python -m atoll.train.trainer       standard input: where the agent is (see `channel`)

It knows no network, no round and no lease: samples come in, weights go out.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import Literal

import torch

from atoll.clock import monotonic_s
from atoll.config import ModelConfig, RunConfig
from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.errors import AtollError, ConfigError, ConnectionLost, RunError
from atoll.model.flat import load_flat_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.model.memory import Training
from atoll.train.channel import (
    Answer,
    Channel,
    Declined,
    Failed,
    Halt,
    Load,
    Loaded,
    Merge,
    Merged,
    Quit,
    Save,
    Saved,
    Setup,
    Snapped,
    Snapshot,
    Started,
    Stepped,
    Train,
    Trained,
    read_address,
)
from atoll.train.device import computes_in_bf16, name_of, pick_devices, set_threads
from atoll.train.exchanged import merge_, start_snapshot
from atoll.train.fit import MicroBatchFile, choose_micro_batch, free_memory
from atoll.train.inner import Computing, InnerLoop
from atoll.train.moments import Tensors
from atoll.train.optim import copy_moments, give_moments_, read_moments_for, save_optimizer
from atoll.train.parallel import ALONE, Ranks, join, shard_
from atoll.train.ranks import Followers
from atoll.train.recompute import recompute_
from atoll.train.shared import SharedVectors
from atoll.train.work import cut_into_steps, num_samples


class Work:
    """The inner steps of a `Train`, one by one."""

    def __init__(self, order: Train, loop: InnerLoop) -> None:
        self._loop = loop
        self._last_step = order.last_step
        self._steps = enumerate(
            cut_into_steps(order.spans, batch_sequences=loop.config.inner.batch_sequences),
            start=order.first_step,
        )
        self._next = next(self._steps, None)
        self._num_steps = self._num_samples = self._num_tokens = 0
        self._total_loss = 0.0

    @property
    def is_done(self) -> bool:
        return self._next is None

    def next_step(self) -> Train:
        """Return the next step alone, for another rank to take it as well."""
        assert self._next is not None, "all steps are taken"
        number, spans = self._next
        return Train(first_step=number, last_step=self._last_step, spans=spans)

    def step(self) -> Stepped:
        """Take the next step."""
        assert self._next is not None, "all steps are taken"
        number, spans = self._next
        step = min(number, self._last_step)
        began_at = monotonic_s()
        result = self._loop.step(spans, step=step)
        seconds = monotonic_s() - began_at
        self._next = next(self._steps, None)
        self._num_steps += 1
        self._num_samples += num_samples(spans)
        self._num_tokens += result.num_tokens
        self._total_loss += result.loss * result.num_tokens
        return Stepped(
            step=step,
            loss=result.loss,
            num_samples=num_samples(spans),
            num_tokens=result.num_tokens,
            seconds=seconds,
            grad_norm=result.grad_norm,
        )

    def report(self) -> Trained:
        """Return what is done; it was halted if that is not all."""
        return Trained(
            num_steps=self._num_steps,
            num_samples=self._num_samples,
            num_tokens=self._num_tokens,
            mean_loss=self._total_loss / max(1, self._num_tokens),
            halted=not self.is_done,
        )


class Replica:
    """The local copy of the model, with its optimizer and the vectors shared with the agent.

    With several devices, each rank has its part of it; what one is told, `followers` are told too.
    """

    def __init__(self, setup: Setup, channel: Channel, followers: Followers) -> None:
        config, peer = setup.config, setup.peer
        devices = pick_devices(peer)
        seat = setup.seat or followers.seat
        device = devices[0 if seat is None else seat.rank]
        self.threads = set_threads(peer.threads, num_ranks=len(devices))
        self.device_name = name_of(devices)
        self.layout = layout_of(config)
        self.vectors = SharedVectors.open(Path(setup.vectors), self.layout.num_values)
        self._channel = channel
        self._followers = followers
        self._saving: Thread | None = None
        self._answering: Thread | None = None
        bf16 = computes_in_bf16(device) if peer.precision == "auto" else peer.precision == "bf16"
        self.ranks = ALONE if seat is None else join(seat, device)
        how = Training(peer.micro_batch, bf16, len(devices), peer.recompute == "layers")
        self._chosen = MicroBatchFile(peer.directory, config, how, device=self.device_name)
        micro_batch = self._choose_micro_batch(config, how, device)
        self.loop = InnerLoop(
            build(config.model, device, ranks=self.ranks, bf16=bf16),
            Batches(Dataset.open(Path(setup.dataset)), seed=config.seed),
            config,
            how=Computing(micro_batch=micro_batch, bf16=bf16, accumulate=peer.accumulate),
            ranks=self.ranks,
        )
        recompute_(self.loop.model, peer.recompute)
        load_flat_(self.loop.model, self.vectors.global_N, self.layout)

    def _choose_micro_batch(self, config: RunConfig, how: Training, device: torch.device) -> int:
        """Return what fits on the device of rank 0, for all ranks: they step together."""
        chosen = 0
        if self.ranks.leads:
            free_bytes = free_memory(device, num_ranks=how.devices)
            remembered = self._chosen.read()
            chosen = choose_micro_batch(config, how, free_bytes=free_bytes, remembered=remembered)
            if how.micro_batch == 0 and chosen != remembered:
                self._chosen.write(chosen)
        return self.ranks.agree(chosen)

    def take_fewer(self) -> None:
        """Let the next trainer take fewer samples at once, if it can: ours were too many."""
        if self.ranks.leads:
            self._chosen.halve()

    def obey(self, command: Snapshot | Merge | Save | Load) -> None:
        """Carry out a command between two steps, and answer it, then or when it is done."""
        match command:
            case Snapshot():
                self._snapshot(command)
            case Merge():
                began_at = monotonic_s()
                self._followers.tell(command)
                merge_(self.loop.model, self.layout, vectors=self.vectors, merge=command)
                self._followers.wait_for(Merged)
                self._channel.send(Merged(seconds=monotonic_s() - began_at))
            case Save(path=path):
                self._save(Path(path))
            case Load(path=path):
                self._finish_saving()
                self._channel.send(attempt(lambda: self._load(Path(path)), "load", then=Loaded()))

    def _snapshot(self, snapshot: Snapshot) -> None:
        began_at = monotonic_s()
        self._followers.tell(snapshot)
        finish = start_snapshot(
            self.loop.model, self.layout, vectors=self.vectors, snapshot=snapshot
        )
        snapped = Snapped(seconds=monotonic_s() - began_at)
        if finish is None and not self._followers:
            self._channel.send(snapped)
            return

        before = self._answering  # answers come in the order of the commands

        def answer() -> None:
            if finish is not None:
                finish()
            self._followers.wait_for(Snapped)
            if before is not None:
                before.join()
            with suppress(ConnectionLost):
                self._channel.send(snapped)

        self._answering = Thread(target=answer, daemon=True)
        self._answering.start()

    def _save(self, path: Path) -> None:
        self._finish_saving()  # one at a time: each takes the memory of the moments once more
        self._followers.tell(Save(path=str(path)))
        num_steps = self.loop.steps_since_fresh
        moments = copy_moments(self.loop.optimizer, model=self.loop.model)
        if not self.ranks.leads:
            self._channel.send(Saved())  # it was asked for our part alone
            return

        def write() -> None:
            answer: Answer = Declined(command="save", reason="a bug", hint="see the trainer's log")
            try:
                answer = attempt(
                    lambda: save_optimizer(path, moments, num_steps=num_steps), "save", then=Saved()
                )
            finally:
                with suppress(ConnectionLost):
                    self._channel.send(answer)

        self._saving = Thread(target=write)
        self._saving.start()

    def _finish_saving(self) -> None:
        if self._saving is not None:
            self._saving.join()

    def _load(self, path: Path) -> None:
        loop = self.loop
        # Rank 0 reads, and says whether there is anything to be had, before it calls the others.
        tensors: Tensors = {}
        num_steps = 0
        if self.ranks.leads:
            tensors, num_steps = read_moments_for(path, loop.optimizer, model=loop.model)
            self._followers.tell(Load(path=str(path)))
        num_steps = self.ranks.agree(num_steps)
        give_moments_(loop.optimizer, tensors, num_steps=num_steps, model=loop.model)
        loop.steps_since_fresh = num_steps
        self._followers.wait_for(Loaded)


def build(config: ModelConfig, device: torch.device, *, ranks: Ranks, bf16: bool) -> Llama:
    """Return the model on its device, or this rank's part of it; it has no weights worth having."""
    if ranks.mesh is None:
        return Llama(config).to(device)
    with torch.device("meta"):
        model = Llama(config)
    shard_(model, ranks, bf16=bf16)
    return model.to_empty(device=device)


def serve(channel: Channel) -> None:
    """Do what the agent says, until it says `Quit`.

    Raises:
        ConnectionLost: the agent is gone.
    """
    setup = channel.receive()
    assert isinstance(setup, Setup), "an agent begins with Setup"
    num_ranks = len(pick_devices(setup.peer)) if setup.seat is None else 1

    def give_up(failed: Failed) -> None:
        with suppress(ConnectionLost):
            channel.send(failed)
        os._exit(1)  # the thread that trains may wait for the rank that is gone

    with Followers(setup, num_ranks, on_end=give_up) as followers:
        replica = Replica(setup, channel, followers)
        followers.wait_for(Started)
        channel.send(Started(device=replica.device_name, threads=replica.threads))
        try:
            obey_all(channel, replica, followers)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                replica.take_fewer()
            raise


def obey_all(channel: Channel, replica: Replica, followers: Followers) -> None:
    """Train when there is work, and carry out commands between two steps, until `Quit`."""
    work: Work | None = None
    while True:
        if work is not None and work.is_done:
            channel.send(work.report())
            work = None
        elif work is not None and not channel.has_news():
            followers.tell(work.next_step())
            channel.send(work.step())
        else:
            match channel.receive():
                case Quit():
                    return
                case Halt():  # one may come when the work is done already
                    if work is not None:
                        channel.send(work.report())
                    work = None
                case Train() as order:
                    assert work is None, "one work at a time"
                    work = Work(order, replica.loop)
                case Snapshot() | Merge() | Save() | Load() as command:
                    replica.obey(command)


def attempt(do: Callable[[], None], command: Literal["save", "load"], *, then: Answer) -> Answer:
    """Return `then` when it is done, or why it was not possible."""
    try:
        do()
    except RunError as error:
        return Declined(command=command, reason=str(error), hint=error.hint)
    return then


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the device or the system had no more memory to give; torch has no one type."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(w in str(error).lower() for w in words)


def first_line_of(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def run(channel: Channel) -> int:
    """Serve the agent, tell it what went wrong if something did, and return the exit code."""
    try:
        serve(channel)
    except ConnectionLost:
        return 1  # nobody is left to tell
    except AtollError as error:
        lasting = isinstance(error, ConfigError)
        failed = Failed(reason=str(error), hint=error.hint, lasting=lasting)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failed = Failed(
            reason=f"the trainer has run out of memory: {first_line_of(error)}",
            hint="a smaller --micro-batch needs less, and changes no result",
        )
    else:
        return 0
    with suppress(ConnectionLost):
        channel.send(failed)
    return 1


def main() -> int:
    # Ctrl-C reaches every process of a terminal; what to do about it is the agent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        channel = Channel.connect(read_address(sys.stdin.buffer.readline()))
    except ConnectionLost:
        return 1
    with closing(channel):
        return run(channel)


if __name__ == "__main__":
    sys.exit(main())
