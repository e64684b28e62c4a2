"""The trainer of a peer, kept alive: started from the agent's own state, and again when it dies.

A trainer that dies takes the local work with it, not the peer: the leases are still ours, and are
trained on once more. After three deaths in a row there is something that only a person can mend.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from atoll.config import PeerConfig, RunConfig
from atoll.errors import AtollError, DamagedError, RunError
from atoll.events import Emit, PhaseTimed, TrainerDied as TrainerDeath, TrainerStarted
from atoll.net import wire
from atoll.peer.work import LocalWork
from atoll.train.channel import Stepped, Train
from atoll.train.launch import Trainer, TrainerDied
from atoll.train.shared import SharedVectors

MAX_DEATHS = 3
HUNG_S = 300.0  # for the first step, which may compile; then a multiple of the slowest one
HUNG_STEPS = 30


class Training:
    """`work` says what the trainer's weights contain; `newest` how its last inner step went."""

    def __init__(
        self,
        config: RunConfig,
        peer: PeerConfig,
        *,
        vectors: SharedVectors,
        log_path: Path,
        emit: Emit,
    ) -> None:
        self.vectors = vectors
        self.work = LocalWork()
        self.newest: Stepped | None = None
        self.inner: Path | None = None  # the inner optimizer that goes with the global weights
        self._config = config
        self._peer = peer
        self._log_path = log_path
        self._emit = emit
        self._dataset: Path | None = None
        self._trainer: Trainer | None = None
        self._deaths = 0
        self._stepped_at = 0.0
        self._slowest_s = 0.0
        self._loss_sum = 0.0
        self._loss_tokens = 0

    @property
    def mean_loss(self) -> float:
        """The mean loss per token over the local work."""
        return self._loss_sum / max(1, self._loss_tokens)

    async def start(self, dataset: Path) -> str:
        """Start the trainer from the global weights; return the device.

        Raises:
            RunError: it died three times in a row.
        """
        self._dataset = dataset
        return (await self._alive()).started.device

    async def load(self, path: Path) -> None:
        """Let the inner optimizer go on from what was saved.

        Raises:
            DamagedError: the file is not what was saved.
        """
        try:
            if self._trainer is not None:
                await self._trainer.load(path)
        except RunError as error:
            raise DamagedError(
                str(error), hint=f"delete {path}: the inner optimizer then starts afresh"
            ) from error
        except TrainerDied as death:
            self._note(death)

    async def train(self, plan: wire.Plan, *, until: Callable[[], Awaitable[Any]]) -> bool:
        """Do what is left of our work; return whether it is whole. It ends early when `until` does.

        Raises:
            RunError: the trainer died three times in a row.
        """
        ending = asyncio.ensure_future(until())
        try:
            while self.work.left() and not ending.done():
                await self._train_once(plan, ending)
        finally:
            ending.cancel()
        return self.work.is_whole

    async def _train_once(self, plan: wire.Plan, ending: "asyncio.Future[Any]") -> None:
        try:
            trainer = await self._alive()
            steps_done = self.work.consumed // self._config.inner.batch_sequences
            order = Train(first_step=plan.first_step + steps_done, spans=self.work.begin())
            self._stepped_at = asyncio.get_running_loop().time()
            training = asyncio.ensure_future(trainer.train(order, on_step=self._note_step))
            watching = asyncio.ensure_future(self._watch(trainer))
            try:
                await asyncio.wait((training, ending), return_when=asyncio.FIRST_COMPLETED)
                trainer.halt()
                done = await training
            finally:
                training.cancel()
                watching.cancel()
        except TrainerDied as death:
            self._note(death)
            return
        self._emit(PhaseTimed(round=plan.round, phase="snapshot", seconds=done.snapshot_s))
        self.work.end(done.num_samples)
        self._loss_sum += done.mean_loss * done.num_tokens
        self._loss_tokens += done.num_tokens

    async def _watch(self, trainer: Trainer) -> None:
        """Kill the trainer when it takes far longer for a step than it ever did: it hangs."""
        loop = asyncio.get_running_loop()
        while True:
            limit_s = max(HUNG_S, HUNG_STEPS * self._slowest_s)
            wait_s = self._stepped_at + limit_s - loop.time()
            if wait_s <= 0:
                trainer.kill()
                return
            await asyncio.sleep(wait_s)

    def note_commit(self) -> None:
        """Note that work of ours is part of the model: whatever died before is forgiven."""
        self._deaths = 0

    async def merge(self, how: Literal["replace", "carry"]) -> None:
        """Let the trainer take over the new global weights."""
        if how == "replace":
            self._forget_work()
        try:
            trainer = self._trainer
            if trainer is not None:
                await trainer.merge(how)
        except TrainerDied as death:
            self._note(death)

    async def save(self, path: Path) -> None:
        """Keep the inner optimizer's state.

        Raises:
            RunError: the disk is full.
        """
        try:
            if self._trainer is not None:
                await self._trainer.save(path)
        except TrainerDied as death:
            self._note(death)

    async def stop(self) -> None:
        if self._trainer is not None:
            await self._trainer.stop()
        self.vectors.unlink()

    async def _alive(self) -> Trainer:
        """Return the trainer, started anew from the global weights if it is gone."""
        while self._trainer is None:
            assert self._dataset is not None
            try:
                self._trainer = await Trainer.start(
                    self._config,
                    self._peer,
                    vectors=self.vectors,
                    dataset=self._dataset,
                    log_path=self._log_path,
                )
            except TrainerDied as death:
                self._note(death)
                continue
            started = self._trainer.started
            self._emit(TrainerStarted(pid=self._trainer.pid, device=started.device))
            if self.inner is not None and await asyncio.to_thread(self.inner.exists):
                await self.load(self.inner)
        return self._trainer

    def _note(self, death: TrainerDied) -> None:
        """Count a death, and what went with it.

        Raises:
            RunError: it was one too many.
        """
        self._trainer = None
        self._forget_work()
        self._deaths += 1
        self._emit(TrainerDeath(reason=str(death), in_a_row=self._deaths))
        if self._deaths >= MAX_DEATHS:
            raise RunError(
                f"the trainer died {MAX_DEATHS} times in a row, the last time: {death}",
                hint=death.hint or f"its log: {self._log_path}",
            ) from death

    async def note_bad_work(self, error: AtollError) -> None:
        """Count local work that must not be shared as a death: the trainer went astray.

        Raises:
            RunError: it was one too many.
        """
        if self._trainer is not None:
            await self._trainer.stop()
        self._note(TrainerDied(str(error), hint=error.hint))

    def _note_step(self, step: Stepped) -> None:
        self.newest = step
        self._stepped_at = asyncio.get_running_loop().time()
        self._slowest_s = max(self._slowest_s, step.seconds)

    def _forget_work(self) -> None:
        self.work.clear()
        self._loss_sum, self._loss_tokens = 0.0, 0
