"""The process that computes: it serves one agent, and ends with it.

    python -m atoll.train.trainer       standard input: where the agent is (see `channel`)

It knows no network, no round and no lease: samples come in, weights go out.
"""

import signal
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from atoll.clock import monotonic_s
from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.errors import AtollError, ConnectionLost, RunError
from atoll.model.flat import load_flat_, store_flat_
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters
from atoll.train.channel import (
    Answer,
    Channel,
    Declined,
    Failed,
    Load,
    Loaded,
    Merge,
    Merged,
    Quit,
    Save,
    Saved,
    Setup,
    Started,
    Stepped,
    Train,
    Trained,
    read_address,
)
from atoll.train.device import device_name, pick_device, set_threads
from atoll.train.inner import InnerLoop
from atoll.train.merge import carry_
from atoll.train.optim import load_optimizer_, save_optimizer
from atoll.train.shared import SharedVectors
from atoll.train.work import cut_into_steps, num_samples


class Replica:
    """The local copy of the model, with its optimizer and the vectors shared with the agent."""

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        self.threads = set_threads(setup.peer.threads)
        device = pick_device(setup.peer.device)
        self.device_name = device_name(device)
        self.vectors = SharedVectors.open(Path(setup.vectors), num_parameters(config.model))
        self.loop = InnerLoop(
            Llama(config.model).to(device),
            Batches(Dataset.open(Path(setup.dataset)), seed=config.seed),
            config,
            micro_batch=setup.peer.micro_batch,
        )
        load_flat_(self.loop.model, self.vectors.global_N)

    def train(self, work: Train, channel: Channel) -> Trained:
        """Take the inner steps of `work`, up to the first one before which the agent has news."""
        batch_sequences = self.loop.config.inner.batch_sequences
        steps = cut_into_steps(work.spans, batch_sequences=batch_sequences)
        done, samples, tokens, total_loss = 0, 0, 0, 0.0
        halted = False
        for step, spans in enumerate(steps, start=work.first_step):
            if halted := channel.has_news():
                break
            began_at = monotonic_s()
            result = self.loop.step(spans, step=step)
            seconds = monotonic_s() - began_at
            channel.send(
                Stepped(
                    step=step,
                    loss=result.loss,
                    num_tokens=result.num_tokens,
                    seconds=seconds,
                    grad_norm=result.grad_norm,
                )
            )
            done += 1
            samples += num_samples(spans)
            tokens += result.num_tokens
            total_loss += result.loss * result.num_tokens
        stored_from = monotonic_s()
        store_flat_(self.loop.model, self.vectors.snapshot_N)
        return Trained(
            num_steps=done,
            num_samples=samples,
            num_tokens=tokens,
            mean_loss=total_loss / max(1, tokens),
            snapshot_s=monotonic_s() - stored_from,
            halted=halted,
        )

    def merge(self, merge: Merge) -> None:
        """Take over the global weights; see `Merge`."""
        vectors = self.vectors
        if merge.how == "replace":
            load_flat_(self.loop.model, vectors.global_N)
            return
        local_N = np.empty_like(vectors.global_N)
        store_flat_(self.loop.model, local_N)
        carry_(local_N, global_N=vectors.global_N, reference_N=vectors.snapshot_N)
        load_flat_(self.loop.model, local_N)
        # Work that is whole already is offered again as it lies there, without another inner step.
        vectors.snapshot_N[:] = local_N

    def save(self, path: Path) -> None:
        loop = self.loop
        save_optimizer(path, loop.optimizer, model=loop.model, num_steps=loop.steps_since_fresh)

    def load(self, path: Path) -> None:
        loop = self.loop
        loop.steps_since_fresh = load_optimizer_(path, loop.optimizer, model=loop.model)


def serve(channel: Channel) -> None:
    """Do what the agent says, until it says `Quit`.

    Raises:
        ConnectionLost: the agent is gone.
    """
    setup = channel.receive()
    assert isinstance(setup, Setup), "an agent begins with Setup"
    replica = Replica(setup)
    channel.send(Started(device=replica.device_name, threads=replica.threads))
    while True:
        match channel.receive():
            case Train() as work:
                channel.send(replica.train(work, channel))
            case Merge() as merge:
                replica.merge(merge)
                channel.send(Merged())
            case Save(path=path):
                channel.send(attempt(replica.save, Path(path), then=Saved()))
            case Load(path=path):
                channel.send(attempt(replica.load, Path(path), then=Loaded()))
            case Quit():
                return
            case _:  # a `Halt` that came when the work was done already
                pass


def attempt(do: Callable[[Path], None], path: Path, *, then: Answer) -> Answer:
    """Return `then` when it is done, or why it was not possible."""
    try:
        do(path)
    except RunError as error:
        return Declined(reason=str(error), hint=error.hint)
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
        failed = Failed(reason=str(error), hint=error.hint)
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
