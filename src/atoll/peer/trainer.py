"""What an agent needs of a trainer: the seam between a peer and what trains on it.

`atoll.train.launch.Trainer` is the real one, a process with torch. The simulator brings others.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

from atoll.config import PeerConfig, RunConfig
from atoll.train.channel import Evaluated, How, Started, Train as Work
from atoll.train.launch import OnStep, TrainerDied
from atoll.train.shared import SharedVectors

# Makes the vectors of the peer that lives in this directory, of so many values.
MakeVectors: TypeAlias = Callable[[Path, int], SharedVectors]


class Trainer(Protocol):
    """A running trainer. Each command raises TrainerDied once it is gone."""

    started: Started

    @property
    def pid(self) -> int: ...

    async def train(self, work: Work, *, on_step: OnStep) -> None:
        """Return when the work is done or halted. One work at a time."""
        ...

    def halt(self) -> None:
        """Let the work end after the step that is under way."""
        ...

    async def snapshot(self, start: int, stop: int) -> float:
        """Return when that part of the local weights is in snapshot_N, with the seconds it took."""
        ...

    async def merge(self, how: How, start: int, stop: int, *, alpha: float = 0.0) -> float:
        """Return when that part has taken over the global weights, with the seconds it took."""
        ...

    async def save(self, path: Path) -> None:
        """Return when the inner optimizer is safe in the file; RunError: it cannot be written."""
        ...

    async def load(self, path: Path) -> None:
        """Return when the inner optimizer is that of the file; RunError: the file is damaged."""
        ...

    async def evaluate(self, state: Path) -> Evaluated:
        """Return how good the state in the file is; RunError: it cannot say."""
        ...

    async def death(self) -> TrainerDied:
        """Return how it died, once it has, also while it has nothing to do."""
        ...

    def kill(self) -> None: ...

    async def stop(self) -> None: ...


class StartTrainer(Protocol):
    """Starts a trainer from the weights of `vectors.global_N`, or raises TrainerDied."""

    async def __call__(
        self,
        config: RunConfig,
        peer: PeerConfig,
        *,
        vectors: SharedVectors,
        dataset: Path,
        log_path: Path,
    ) -> Trainer: ...
