"""A trainer without a process or torch: steps take virtual time, and a small model learns.

    Device.start -> SimTrainer --train--> model.learn_(local_N, samples), step by step

`Device` is a machine's: it says how fast it is, and remembers what each of its trainers trained on.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atoll.config import PeerConfig, RunConfig
from atoll.durable import write_whole
from atoll.errors import RunError
from atoll.model.layout import Layout
from atoll.sim.loop import Condition
from atoll.train.channel import Evaluated, How, Started, Stepped, Train
from atoll.train.launch import OnStep, TrainerDied
from atoll.train.shared import SharedVectors

UNEVEN = 0.1  # steps take so much longer or shorter than the others


class Model(Protocol):
    """What is learned. `moments_N` is the state of the inner optimizer, for it to use."""

    def learn_(
        self, local_N: NDArray[np.float32], moments_N: NDArray[np.float32], samples: Sequence[int]
    ) -> float:
        """Take one inner step on these samples; return the mean loss before it."""
        ...


@dataclass(eq=False)
class Device:
    """What the trainers of one peer run on; `step_s` are the seconds of an inner step."""

    model: Model
    step_s: float
    rng: Random
    condition: Condition = field(default_factory=Condition)
    trainer: "SimTrainer | None" = None
    lives: list[list[int]] = field(default_factory=list)  # of each trainer: its samples, in order

    async def start(
        self,
        config: RunConfig,
        peer: PeerConfig,  # noqa: ARG002 - what it says of devices, we know better
        *,
        vectors: SharedVectors,
        dataset: Path,  # noqa: ARG002 - a sample is its number
        log_path: Path,  # noqa: ARG002 - nothing is printed
    ) -> "SimTrainer":
        await asyncio.sleep(self.step_s)  # until it has read its weights
        self.trainer = SimTrainer(self, config, vectors)
        self.lives.append(self.trainer.trained)
        return self.trainer

    def seconds_of_step(self) -> float:
        return self.step_s * self.condition.slowness * self.rng.uniform(1 - UNEVEN, 1 + UNEVEN)


class SimTrainer:
    """Stands for `atoll.train.launch.Trainer`: see there for what each command does."""

    pid = 1

    def __init__(self, device: Device, config: RunConfig, vectors: SharedVectors) -> None:
        self.started = Started(device="sim", threads=1)
        self.trained: list[int] = []
        self._device = device
        self._batch = config.inner.batch_sequences
        self._sequence_length = config.data.sequence_length
        self._vectors = vectors
        self._local_N = vectors.global_N.copy()
        self._moments_N = np.zeros_like(self._local_N)
        self._halted = False
        self._is_hung = False
        self._death = asyncio.get_running_loop().create_future()

    async def train(self, work: Train, *, on_step: OnStep) -> None:
        self._halted = False
        samples = [sample for start, stop in work.spans for sample in range(start, stop)]
        for number, first in enumerate(range(0, len(samples), self._batch)):
            if self._halted:
                break
            seconds = self._device.seconds_of_step()
            await self._live_through(seconds)
            batch = samples[first : first + self._batch]
            loss = self._device.model.learn_(self._local_N, self._moments_N, batch)
            self.trained += batch
            on_step(
                Stepped(
                    step=min(work.first_step + number, work.last_step),
                    loss=loss,
                    num_samples=len(batch),
                    num_tokens=len(batch) * self._sequence_length,
                    seconds=seconds,
                    grad_norm=1.0,
                )
            )

    def halt(self) -> None:
        self._halted = True

    async def snapshot(self, start: int, stop: int) -> float:
        await self._live_through(0.0)
        self._vectors.snapshot_N[start:stop] = self._local_N[start:stop]
        return 0.0

    async def merge(self, how: How, start: int, stop: int, *, alpha: float = 0.0) -> float:
        await self._live_through(0.0)
        part = slice(start, stop)
        new_N = self._vectors.global_N[part].astype(np.float64)
        if how == "carry":
            new_N += self._local_N[part] - self._vectors.snapshot_N[part].astype(np.float64)
        elif how == "blend":
            new_N = alpha * self._local_N[part].astype(np.float64) + (1 - alpha) * new_N
        self._local_N[part] = new_N
        return 0.0

    async def save(self, path: Path) -> None:
        await self._live_through(0.0)
        write_whole(path, self._moments_N.tobytes())

    async def load(self, path: Path) -> None:
        await self._live_through(0.0)
        moments = await asyncio.to_thread(path.read_bytes)
        if len(moments) != self._moments_N.nbytes:
            raise RunError(f"{path} is no state of the inner optimizer")
        self._moments_N[:] = np.frombuffer(moments, np.float32)

    async def evaluate(self, state: Path) -> Evaluated:
        await self._live_through(self._device.seconds_of_step())
        return Evaluated(loss=2.0, text=state.parent.name)

    def spoil_(self, factor: float) -> None:
        self._local_N *= np.float32(factor)

    def hang(self) -> None:
        """Do nothing any more, and say nothing."""
        self._is_hung = True

    async def death(self) -> TrainerDied:
        await asyncio.wait([self._death])
        return TrainerDied("it was killed")

    def kill(self) -> None:
        if not self._death.done():
            self._death.set_result(None)

    async def stop(self) -> None:
        self.kill()

    async def _live_through(self, seconds: float) -> None:
        """Let time pass; the end of the trainer may be the end of it."""
        if seconds and not self._is_hung:
            await asyncio.wait([self._death], timeout=seconds)
        if self._is_hung:
            await asyncio.wait([self._death])
        if self._death.done():
            raise await self.death()


# --- models --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Sample s lowers value s of each fragment by `STEP`, wherever the weights are.

    So a model says how often, and with which weight, it contains each sample.
    """

    starts: tuple[int, ...]  # of the fragments
    size: int  # of the smallest fragment
    STEP = 2.0**-6

    @classmethod
    def of(cls, layout: Layout) -> "Tally":
        sizes = [fragment.stop - fragment.start for fragment in layout.fragments]
        return cls(tuple(fragment.start for fragment in layout.fragments), min(sizes))

    def learn_(
        self,
        local_N: NDArray[np.float32],
        moments_N: NDArray[np.float32],
        samples: Sequence[int],
    ) -> float:
        moments_N[0] += 1  # steps: an optimizer that is lost, or loaded twice, would show
        places = np.array(samples) % self.size
        for start in self.starts:
            np.subtract.at(local_N, start + places, np.float32(self.STEP))
        return 2.0


@dataclass(frozen=True)
class Regression:
    """Linear least squares with momentum: few features of each sample, one target for all peers."""

    seed: int
    lr: float = 0.2
    momentum: float = 0.8
    FEATURES = 16
    WEIGHTS = 64  # that have anything to do with the target: the first ones

    def truth(self) -> NDArray[np.float64]:
        """Return what the first weights should become."""
        return np.cos(np.arange(self.WEIGHTS, dtype=np.float64))

    def learn_(
        self,
        local_N: NDArray[np.float32],
        moments_N: NDArray[np.float32],
        samples: Sequence[int],
    ) -> float:
        loss = 0.0
        moments_N *= np.float32(self.momentum)
        for sample in samples:
            rng = np.random.default_rng((self.seed, sample))
            places = rng.integers(0, self.WEIGHTS, self.FEATURES)
            inputs = rng.standard_normal(self.FEATURES)
            error = float(inputs @ (local_N[places] - self.truth()[places]))
            loss += 0.5 * error * error / len(samples)
            step = (self.lr / len(samples) / self.FEATURES) * error * inputs
            np.add.at(moments_N, places, step.astype(np.float32))
        local_N -= moments_N
        return loss


@dataclass(frozen=True)
class Idle:
    """Nothing is learned; only time passes."""

    def learn_(
        self,
        local_N: NDArray[np.float32],  # noqa: ARG002
        moments_N: NDArray[np.float32],  # noqa: ARG002
        samples: Sequence[int],  # noqa: ARG002
    ) -> float:
        return 2.0
