"""The trainer of a peer, kept alive: started from the agent's own state, and again when it dies.

A trainer that dies takes the local work with it, not the peer: the leases are still ours, and are
trained on once more. After three deaths in a row there is something that only a person can mend.

Two ways to train. Where it waits for the exchange: `train`, then `merge`. Where it does not:

    training.go_on(first_step, upto=...)                    the trainer works on in the background
    await training.reach(work.round_target(...))
    await training.snapshot(start, stop) ... exchange ... await training.merge_part("carry", ...)
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from atoll.config import PeerConfig, RunConfig
from atoll.errors import AtollError, DamagedError, RunError
from atoll.events import Emit, PhaseTimed, TrainerDied as TrainerDeath, TrainerStarted
from atoll.exchange.tasks import comes_first
from atoll.ids import Lease, LeaseId, RoundId
from atoll.net import wire
from atoll.peer.loss import Loss
from atoll.peer.patience import Patience
from atoll.peer.speed import Speed
from atoll.peer.trainer import StartTrainer, Trainer
from atoll.peer.work import LocalWork
from atoll.train.channel import Evaluated, How, Started, Stepped, Train
from atoll.train.launch import TrainerDied
from atoll.train.shared import SharedVectors

MAX_DEATHS = 3
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Aim:
    """How far to train. Samples count from the first one that this peer ever leased."""

    first_step: int = 0  # the inner step of the run for sample number `at`
    at: int = 0
    stop: int = 0


class Training:
    """`work` says what the trainer's weights contain; `newest` how its last inner step went."""

    def __init__(
        self,
        config: RunConfig,
        peer: PeerConfig,
        *,
        start_trainer: StartTrainer,
        vectors: SharedVectors,
        log_path: Path,
        emit: Emit,
    ) -> None:
        self.vectors = vectors
        self.work = LocalWork()
        self.newest: Stepped | None = None
        self.speed = Speed()
        self.inner: Path | None = None  # the inner optimizer that goes with the global weights
        # Whoever writes the global weights holds it: a trainer that starts reads them as a whole.
        # Not while it asks for a `rest`, which a trainer that waits for it would never take.
        self.writing = asyncio.Lock()
        self._config = config
        self._batch_sequences = config.inner.batch_sequences
        self._peer = peer
        self._start_trainer = start_trainer
        self._log_path = log_path
        self._emit = emit
        self._dataset: Path | None = None
        self._trainer: Trainer | None = None
        self._is_new = asyncio.Event()  # that trainer, to whoever minds it
        self._starting = asyncio.Lock()  # whoever starts a trainer
        self._lives = 0  # of trainers that have started
        self._deaths = 0
        self._patience = Patience()
        self.started = Started(device="", threads=0)  # what the newest trainer says of itself
        self._steps_s = 0.0
        self._has_stepped = False
        self._loss = Loss()  # of the work that is not offered
        self._losses: dict[RoundId, Loss] = {}  # of what is, by its round
        self._background: asyncio.Task[None] | None = None
        self._last_step = 0  # the inner step of the run that the present round ends with
        self._resting = asyncio.Event()
        self._moved = asyncio.Event()  # set when work is done, or nobody is doing any
        self._aim = Aim()
        self._paused = asyncio.Event()
        self._resumed = asyncio.Event()

    async def start(self, dataset: Path) -> None:
        """Start the trainer from the global weights; `started` is then what it says of itself.

        Raises:
            RunError: it died three times in a row.
        """
        self._dataset = dataset
        while await self._alive() is None:
            await self._resumed.wait()

    async def mind(self) -> None:
        """Notice the death of a trainer that has nothing to do, and start the next; for ever.

        While it has something to do, whoever waits for that notices.

        Raises:
            RunError: it died three times in a row.
        """
        while await self._is_new.wait():
            self._is_new.clear()
            trainer = self._trainer
            if trainer is None:
                continue
            death = await trainer.death()
            await self._patience.idle()
            if self._trainer is trainer:
                self._note(death, trainer)
                while self.is_paused or await self._alive() is None:
                    await self._resumed.wait()

    # --- while its owner wants the machine for something else ------------------------------------

    @property
    def is_paused(self) -> bool:
        return self._paused.is_set()

    def pause(self) -> None:
        """Take no step after the one that is under way; what was done stays in the weights."""
        self._resumed.clear()
        self._paused.set()

    def resume(self) -> None:
        self._paused.clear()
        self._resumed.set()

    async def _may_train(self, ending: "asyncio.Future[Any]") -> bool:
        """Return, once it is not paused, whether `ending` has not come before."""
        while self.is_paused and not ending.done():
            await comes_first(self._resumed.wait(), ending)
        return not ending.done()

    # --- the inner optimizer ---------------------------------------------------------------------

    async def load(self, path: Path) -> None:
        """Let the inner optimizer go on from what was saved; work in the background waits for it.

        Raises:
            DamagedError: the file is not what was saved.
        """
        was_going = self._background is not None and not self._background.done()
        await self.rest()
        await self._load(path)
        if was_going:
            self._begin()

    async def _load(self, path: Path) -> None:
        try:
            await self._ask(lambda trainer: trainer.load(path))
        except RunError as error:
            raise DamagedError(
                str(error), hint=f"delete {path}: the inner optimizer then starts afresh"
            ) from error

    # --- while the exchange waits ---------------------------------------------------------------

    async def train(self, plan: wire.Plan, *, until: Callable[[], Awaitable[Any]]) -> bool:
        """Do what is left of our work; it ends early when `until` does.

        Returns whether it is whole, and the local weights in snapshot_N.

        Raises:
            RunError: the trainer died three times in a row.
        """
        self._last_step = plan.first_step + self._config.steps_per_round - 1
        ending = asyncio.ensure_future(until())
        try:
            while not ending.done():
                if self.work.left():
                    first_step = plan.first_step + self.work.consumed // self._batch_sequences
                    await self._train_once(first_step, self.work.num_samples, ending)
                elif not self.work.is_whole:
                    return False
                elif (seconds := await self.snapshot(0, self.vectors.num_values)) is not None:
                    self._emit(PhaseTimed(round=plan.round, phase="snapshot", seconds=seconds))
                    return True
        finally:
            ending.cancel()
        return False

    async def merge(self, how: Literal["replace", "carry"]) -> None:
        """Let the trainer take over the new global weights; work in the background ends."""
        await self.rest()
        if how == "replace":
            self._forget_work()
            self.work.forget_offers()
        await self.merge_part(how, 0, self.vectors.num_values)

    # --- while the exchange is under way --------------------------------------------------------

    def go_on(self, first_step: int, *, upto: int, at: int | None = None) -> None:
        """Train in the background on the first `upto` samples of the work, or all if it has fewer.

        `first_step` is the inner step of the run for sample number `at` of all that this peer ever
        leased; without it, for the first sample of the work. What is under way goes on; the new
        limit holds from its end on.

        Raises:
            RunError: the trainer has died three times in a row.
        """
        self._check_background()
        # What follows the work of a round is that of the next ones, while it is in flight.
        num_rounds = 1 + self._config.sync.in_flight
        self._last_step = first_step + num_rounds * self._config.steps_per_round - 1
        settled = self.work.settled
        self._aim = Aim(first_step, at=settled if at is None else at, stop=settled + upto)
        self._begin()

    def _begin(self) -> None:
        self._resting.clear()
        if self._background is None or self._background.done():
            self._background = asyncio.create_task(self._go_on())
            self._background.add_done_callback(lambda _: self._moved.set())

    async def _go_on(self) -> None:
        while not self._resting.is_set():
            settled, consumed = self.work.settled, self.work.consumed
            stop = min(self._aim.stop - settled, self.work.next_stop())
            if stop <= consumed:
                return
            position = settled - self._aim.at + consumed
            first_step = max(0, self._aim.first_step + position // self._batch_sequences)
            resting = asyncio.ensure_future(self._resting.wait())
            try:
                await self._train_once(first_step, stop, resting)
            finally:
                resting.cancel()

    async def rest(self) -> None:
        """Let the work in the background end at the next step boundary; return when it has.

        Raises:
            RunError: the trainer died three times in a row.
        """
        self._resting.set()
        if self._background is not None:
            await asyncio.wait([self._background])
        self._check_background()

    def hold(self, leases: tuple[Lease, ...]) -> bool:
        """Note which leases are ours now; see `LocalWork.hold`."""
        self._moved.set()
        return self.work.hold(leases)

    async def change(self) -> None:
        """Return when work is done from now on, or leases are other ones, or nobody works."""
        self._check_background()
        self._moved.clear()
        await self._moved.wait()

    async def reach(self, num_samples: int) -> None:
        """Return when so many samples of the work are in the local weights.

        Samples that are committed meanwhile count. Where there is less work than that, or `go_on`
        has set a lower limit, it waits for more.

        Raises:
            RunError: the trainer died three times in a row.
        """
        goal = self.work.settled + num_samples
        while True:
            self._check_background()
            if self.work.settled + self.work.consumed >= goal:
                return
            await self.change()

    def offer(self, round_id: RoundId) -> tuple[tuple[LeaseId, ...], float]:
        """Return the leases of the contribution to a round, and its mean loss per token.

        See `LocalWork.offer`.
        """
        self.withdraw(round_id)
        leases = self.work.offer(round_id)
        self._losses[round_id], self._loss = self._loss, Loss()
        return leases, self._losses[round_id].mean

    def withdraw(self, round_id: RoundId) -> None:
        """Note that the contribution was not committed; see `LocalWork.withdraw`."""
        self.work.withdraw(round_id)
        self._loss += self._losses.pop(round_id, Loss())

    def settle(self, round_id: RoundId, leases: Collection[LeaseId]) -> bool:
        """Note that work of ours is part of the model: whatever died before is forgiven.

        Returns whether the local weights are still good; see `LocalWork.settle`.
        """
        self._deaths = 0
        self._losses.pop(round_id, None)
        return self.work.settle(round_id, leases)

    async def snapshot(self, start: int, stop: int) -> float | None:
        """Let the trainer copy that part of the local weights to snapshot_N.

        Returns how many seconds training stood still; None: there is no trainer, nor any work.

        Raises:
            RunError: the trainer died three times in a row. As in `merge_part`.
        """
        return await self._ask(lambda trainer: trainer.snapshot(start, stop))

    @property
    def life(self) -> int | None:
        """Which trainer of this peer we have now: the how many-th; None: none."""
        return self._lives if self._trainer is not None else None

    async def merge_part(self, how: How, start: int, stop: int, *, alpha: float = 0.0) -> None:
        """Let the trainer take over that part of the global weights, between two steps.

        A trainer that is just starting has the new ones anyway.
        """
        await self._ask(lambda trainer: trainer.merge(how, start, stop, alpha=alpha))

    def _check_background(self) -> None:
        """Raise what the work in the background ended with."""
        if self._background is not None and self._background.done():
            self._background.result()

    # --- both -----------------------------------------------------------------------------------

    async def _train_once(self, first_step: int, stop: int, ending: "asyncio.Future[Any]") -> None:
        """Train on what is left of the first `stop` samples of our work, until `ending`.

        Or until a pause: then it is to be called again, and waits for its end.
        """
        consumed = self.work.consumed
        if not await self._may_train(ending):
            return
        trainer = await self._alive()
        if trainer is None or self.work.consumed != consumed:
            return  # there is none, or it is another one, and begins from the first sample
        # With pace "time" a fast peer has more steps in a round than the run has: the learning rate
        # waits for the others, so that it has not cooled down when they are still at work.
        order = Train(first_step=first_step, last_step=self._last_step, spans=self.work.begin(stop))
        self._patience.begin()
        with self._patience.asking():
            training = asyncio.ensure_future(trainer.train(order, on_step=self._note_step))
            watching = asyncio.ensure_future(self._patience.watch(trainer))
            pausing = asyncio.ensure_future(self._paused.wait())
            try:
                first = (training, ending, pausing)
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                trainer.halt()
                await training
                self.work.end()
            except TrainerDied as death:
                self._note(death, trainer)
            finally:
                for task in (training, watching, pausing):
                    task.cancel()

    def take_steps_s(self) -> float:
        """Return the seconds spent in inner steps since the last call."""
        seconds, self._steps_s = self._steps_s, 0.0
        return seconds

    async def save(self, path: Path) -> None:
        """Keep the inner optimizer's state.

        Raises:
            RunError: the disk is full.
        """
        await self._ask(lambda trainer: trainer.save(path))

    async def evaluate(self, state: Path) -> Evaluated | None:
        """Return how good the state in this file is; None: there is no trainer.

        Raises:
            RunError: it cannot say, or the trainer died three times in a row.
        """
        return await self._ask(lambda trainer: trainer.evaluate(state))

    async def stop(self) -> None:
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
        if self._trainer is not None:
            await self._trainer.stop()
        self.vectors.unlink()

    async def _ask(self, command: Callable[[Trainer], Awaitable[_Answer]]) -> _Answer | None:
        """Return the answer of the trainer; None: it is gone, and the local work with it."""
        trainer = self._trainer
        if trainer is None:
            return None
        with self._patience.asking():
            try:
                async with asyncio.timeout(self._patience.seconds):
                    return await command(trainer)
            except TimeoutError:
                trainer.kill()  # it hangs
                self._note(TrainerDied("it does not answer"), trainer)
            except TrainerDied as death:
                self._note(death, trainer)
        return None

    async def _alive(self) -> Trainer | None:
        """Return the trainer, started anew from the global weights if it is gone.

        None: that did not succeed, and it is paused by now.
        """
        async with self._starting:
            while self._trainer is None:
                try:
                    self._trainer = await self._started()
                except TrainerDied as death:
                    self._note(death, None)
                    if self.is_paused:
                        return None
                    continue
                self._lives += 1
                self._is_new.set()
                self._has_stepped = False
                self.started = self._trainer.started
                self._emit(TrainerStarted(pid=self._trainer.pid, device=self.started.device))
                if self.inner is not None and await asyncio.to_thread(self.inner.exists):
                    await self._load(self.inner)
            return self._trainer

    async def _started(self) -> Trainer:
        assert self._dataset is not None
        trainer = await self._start_trainer(
            self._config,
            self._peer,
            vectors=self.vectors,
            dataset=self._dataset,
            log_path=self._log_path,
        )
        try:
            # What it has read may be half of one state and half of the next.
            async with self.writing:
                await trainer.merge("replace", 0, self.vectors.num_values)
                return trainer
        except BaseException:
            await trainer.stop()
            raise

    def _note(self, death: TrainerDied, trainer: Trainer | None) -> None:
        """Count the death of this trainer, once, and what went with it; None: of a new one.

        Raises:
            RunError: it was one too many.
        """
        if trainer is not self._trainer:
            return
        self._trainer = None
        self._forget_work()
        self._deaths += not self.is_paused  # as when a machine of the peer is gone, and waited for
        self._emit(TrainerDeath(reason=str(death), in_a_row=self._deaths))
        if death.lasting:
            raise RunError(str(death), hint=death.hint) from death
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
        trainer = self._trainer
        try:
            self._note(TrainerDied(str(error), hint=error.hint), trainer)
        finally:
            if trainer is not None:
                await trainer.stop()

    def _note_step(self, step: Stepped) -> None:
        self.newest = step
        self.work.advance(step.num_samples)
        self._loss += Loss(step.loss * step.num_tokens, step.num_tokens)
        self._moved.set()
        self._patience.note_step(step.seconds)
        self._steps_s += step.seconds
        if self._has_stepped:  # the first step of a trainer may compile: it tells nothing of others
            self.speed.note(step.num_samples, step.seconds)
        self._has_stepped = True

    def _forget_work(self) -> None:
        self.work.clear()
        self._loss = Loss()
        self._losses.clear()
