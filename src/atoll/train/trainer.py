"""The process that computes: it serves one agent, and ends with it.

    python -m atoll.train.trainer       standard input: where the agent is (see `channel`)

It knows no network, no round and no lease: samples come in, weights go out.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from atoll.clock import monotonic_s
from atoll.config import ModelConfig, PeerConfig, RunConfig
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
    Evaluate,
    Evaluated,
    Failed,
    Halt,
    Load,
    Merge,
    Quit,
    Save,
    Setup,
    Snapshot,
    Started,
    Stepped,
    Train,
    Trained,
    read_address,
)
from atoll.train.compiled import Compiler, compile_, require_compiler
from atoll.train.device import (
    Precision,
    computes_in_bf16,
    limit_memory,
    name_of,
    pick_devices,
    prepare_process,
)
from atoll.train.exchanged import let_gpu_reach, spread_
from atoll.train.fit import MicroBatchFile, choose_micro_batch, free_memory
from atoll.train.fp8 import fp8_, require_fp8
from atoll.train.inner import Computing, InnerLoop
from atoll.train.inspect import inspect_state
from atoll.train.loss import CHUNK_LOGITS
from atoll.train.parallel import ALONE, Ranks, join, shard_
from atoll.train.peak import cache_of, peak_at_start
from atoll.train.ranks import Followers
from atoll.train.recompute import recompute_
from atoll.train.replica import ReplicaServer
from atoll.train.shared import SharedVectors
from atoll.train.work import Span, cut_into_steps, num_samples


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
        self._after = next(self._steps, None)
        self._then = order.then

    @property
    def is_done(self) -> bool:
        return self._next is None

    def next_step(self) -> Train:
        """Return the next step alone, for another rank to take it as well."""
        assert self._next is not None, "all steps are taken"
        number, spans = self._next
        return Train(
            first_step=number, last_step=self._last_step, spans=spans, then=self._spans_after()
        )

    def step(self) -> Stepped:
        """Take the next step."""
        assert self._next is not None, "all steps are taken"
        number, spans = self._next
        step = min(number, self._last_step)
        began_at = monotonic_s()
        result = self._loop.step(spans, step=step, then=self._spans_after())
        seconds = monotonic_s() - began_at
        self._next, self._after = self._after, next(self._steps, None)
        return Stepped(
            step=step,
            loss=result.loss,
            num_samples=num_samples(spans),
            num_tokens=result.num_tokens,
            seconds=seconds,
            grad_norm=result.grad_norm,
        )

    def _spans_after(self) -> tuple[Span, ...]:
        """Return the samples of the step after the next; none: it is in another order."""
        return self._then if self._after is None else self._after[1]


class Made(NamedTuple):
    """A loop, or a rank's part of it; its weights are any. And where it runs."""

    loop: InnerLoop
    started: Started
    chosen: MicroBatchFile


def make_loop(setup: Setup, followers: Followers) -> Made:
    config, peer, seat = setup.config, setup.peer, followers.seat
    devices = pick_devices(peer)
    device = devices[0 if seat is None else seat.device]
    threads = prepare_process(device, num_threads=peer.threads, num_ranks=len(devices))
    limit_bytes = limit_memory(device, peer.gpu_memory)
    compiler: Compiler = "inductor" if peer.compile else "none"
    if peer.compile:
        require_compiler(device)
    ranks = ALONE
    if seat is not None:
        address = "" if setup.site is None else setup.site.address
        ranks = join(seat, device, address=address, listening=followers.listening)
    precision = choose_precision(config, peer, device, ranks=ranks)
    bf16 = precision != "fp32"
    how = Training(
        peer.micro_batch,
        bf16,
        len(devices),
        recomputes=peer.recompute == "layers",
        machines=1 if seat is None else seat.num_machines,
        chunk_logits=CHUNK_LOGITS[device.type],
        fp8=precision == "fp8",
        whole_gradients=peer.accumulate == "whole",
    )
    chosen = MicroBatchFile(peer.directory, config, how, device=name_of(devices))
    free_bytes = free_memory(device, num_ranks=len(devices), limit_bytes=limit_bytes)
    micro_batch = choose(config, how, chosen, ranks=ranks, free_bytes=free_bytes)
    peak_flops = ranks.total(peak_at_start(device, bf16=bf16, cache=cache_of(peer)))
    loop = InnerLoop(
        build(config.model, device, ranks=ranks, precision=precision, compiler=compiler),
        Batches(Dataset.open(Path(setup.dataset)), seed=config.seed),
        config,
        how=Computing(
            micro_batch=micro_batch, bf16=bf16, accumulate=peer.accumulate, compiler=compiler
        ),
        ranks=ranks,
    )
    recompute_(loop.model, peer.recompute)
    name = name_of(devices)
    if how.machines > 1:
        name = f"{how.machines} machines with {name}"
    return Made(loop, Started(device=name, threads=threads, peak_flops=peak_flops), chosen)


def choose_precision(
    config: RunConfig, peer: PeerConfig, device: torch.device, *, ranks: Ranks
) -> Precision:
    """Return how products are computed; by all ranks alike, as the least able of them can.

    Raises:
        ConfigError: it is to be fp8, and that cannot be.
    """
    if peer.precision == "fp8":
        require_fp8(device, config.model, sequence_length=config.data.sequence_length)
        return "fp8"
    bf16 = peer.precision == "bf16"
    if peer.precision == "auto":
        bf16 = computes_in_bf16(device, width=config.model.width)
    return "bf16" if ranks.least(int(bf16)) else "fp32"


def choose(
    config: RunConfig,
    how: Training,
    chosen: MicroBatchFile,
    *,
    ranks: Ranks,
    free_bytes: int | None,
) -> int:
    """Return how many samples fit on the device at once, and on those of all ranks; remember it.

    Raises:
        ConfigError: none, or fewer than are wanted.
    """
    remembered = chosen.read()
    fits = choose_micro_batch(config, how, free_bytes=free_bytes, remembered=remembered)
    micro_batch = ranks.least(fits)  # they step together, on devices that may not be alike
    if ranks.leads_machine and how.micro_batch == 0 and micro_batch != remembered:
        chosen.write(micro_batch)
    return micro_batch


def build(
    config: ModelConfig,
    device: torch.device,
    *,
    ranks: Ranks,
    precision: Precision,
    compiler: Compiler = "none",
) -> Llama:
    """Return the model on its device, or this rank's part of it; it has no weights worth having.

    Where a device has no products in fp8, they are emulated, slowly; a trainer refuses that.
    """
    is_alone = ranks.mesh is None
    with torch.device(device if is_alone else "meta"):
        model = Llama(config)
    if precision == "fp8":
        fp8_(model, emulated=device.type != "cuda")
    compile_(model, compiler, device=device)
    if is_alone:
        return model
    shard_(model, ranks, bf16=precision != "fp32")
    return model.to_empty(device=device)


def serve(channel: Channel) -> None:
    """Do what the agent says, until it says `Quit`.

    Raises:
        ConnectionLost: the agent is gone.
    """
    setup = channel.receive()
    assert isinstance(setup, Setup), "an agent begins with Setup"

    made: Made | None = None

    def give_up(failed: Failed) -> None:
        with suppress(ConnectionLost, RunError):
            channel.send(failed)
            if made is not None and failed.out_of_memory:
                made.chosen.halve()  # as if it had been our own device
        os._exit(1)  # the thread that trains may wait for the rank that is gone

    with Followers(setup, len(pick_devices(setup.peer)), on_end=give_up) as followers:
        made = make_loop(setup, followers)
        loop, started, chosen = made
        layout = layout_of(setup.config)
        vectors = None
        if setup.vectors:
            vectors = SharedVectors.open(Path(setup.vectors), layout.num_values)
            let_gpu_reach(vectors, loop.device)  # for as long as this process lives
            load_flat_(loop.model, vectors.global_N, layout)
        spread_(loop.model, layout, ranks=loop.ranks)
        followers.wait_for(Started)
        channel.send(started)
        server = ReplicaServer(loop, layout, vectors, channel, followers)
        try:
            inspect = partial(
                inspect_state, loop, dataset=Dataset.open(Path(setup.dataset)), followers=followers
            )
            obey_all(channel, loop, server, followers, inspect=inspect)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error) and loop.ranks.leads_machine:
                chosen.halve()  # the next trainer takes fewer samples at once, if it can
            raise


def obey_all(
    channel: Channel,
    loop: InnerLoop,
    server: ReplicaServer,
    followers: Followers,
    *,
    inspect: Callable[[Evaluate], Evaluated],
) -> None:
    """Train when there is work, and carry out commands between two steps, until `Quit`."""
    work: Work | None = None
    while True:
        if work is not None and work.is_done:
            channel.send(Trained())
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
                        channel.send(Trained())
                    work = None
                case Train() as order:
                    assert work is None, "one work at a time"
                    work = Work(order, loop)
                case Snapshot() | Merge() | Save() | Load() as command:
                    loop.drop_gradients()
                    server.obey(command)
                case Evaluate() as command:
                    channel.send(answer_to(command, inspect))


def answer_to(command: Evaluate, inspect: Callable[[Evaluate], Evaluated]) -> Answer:
    try:
        return inspect(command)
    except RunError as error:
        return Declined(command="evaluate", reason=str(error), hint=error.hint)


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
            out_of_memory=True,
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
