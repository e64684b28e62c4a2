"""A trainer without a process, in virtual time: what it learns tells which samples it trained on.

Sample s lowers the value number s of each fragment by STEP, so a model says how often it contains
which sample, and with which weight.
"""

import asyncio

import numpy as np

from atoll.model.layout import layout_of
from atoll.train.channel import Started, Stepped
from atoll.train.launch import TrainerDied

STEP = 2.0**-6


class ScriptedTrainer:
    """Stands for `atoll.train.launch.Trainer`; `pace` is the seconds of an inner step, by peer."""

    pid = 1
    started = Started(device="script", threads=1)
    pace: dict[str, float] = {}  # noqa: RUF012 - set by each test, as are those that follow
    alive: dict[str, "ScriptedTrainer"] = {}  # noqa: RUF012
    losses: dict[str, float] = {}  # noqa: RUF012 - of the next one of a peer; 2 if there is none

    def __init__(self, config, peer, vectors):
        self.config = config
        self.name = peer.name
        self.vectors = vectors
        self.local_N = vectors.global_N.copy()
        self.loss = self.losses.pop(peer.name, 2.0)
        self.trained = []  # the samples, in their order
        self.merges = []
        self._halted = False
        self._death = asyncio.Event()

    @classmethod
    async def start(cls, config, peer, *, vectors, dataset, log_path):
        cls.alive[peer.name] = cls(config, peer, vectors)
        return cls.alive[peer.name]

    async def train(self, work, *, on_step):
        self._halted = False
        samples = [s for start, stop in work.spans for s in range(start, stop)]
        size = self.config.inner.batch_sequences
        num_steps = 0
        while samples and not self._halted:
            seconds = self.pace.get(self.name, 1.0)
            await self._lives_through(seconds)
            batch, samples = samples[:size], samples[size:]
            for fragment in layout_of(self.config).fragments:
                self.local_N[fragment.start + np.array(batch)] -= np.float32(STEP)
            self.trained += batch
            on_step(
                Stepped(
                    step=min(work.first_step + num_steps, work.last_step),
                    loss=self.loss,
                    num_samples=len(batch),
                    num_tokens=len(batch),
                    seconds=seconds,
                    grad_norm=1.0,
                )
            )
            num_steps += 1

    def halt(self):
        self._halted = True

    async def snapshot(self, start, stop):
        await self._lives_through(0)
        self.vectors.snapshot_N[start:stop] = self.local_N[start:stop]
        return 0.0

    async def merge(self, how, start, stop, *, alpha=0.0):
        await self._lives_through(0)
        self.merges.append(how)
        part = slice(start, stop)
        new_N = self.vectors.global_N[part].astype(float)
        if how == "carry":
            new_N += self.local_N[part] - self.vectors.snapshot_N[part].astype(float)
        self.local_N[part] = new_N
        return 0.0

    async def save(self, path):
        await self._lives_through(0)
        path.write_bytes(b"moments")

    async def load(self, path):
        assert path.read_bytes() == b"moments"

    async def death(self):
        await self._death.wait()
        return TrainerDied("killed")

    def kill(self):
        self._death.set()

    async def stop(self):
        """End after the step that is under way."""
        await asyncio.sleep(self.pace.get(self.name, 0.0))
        self.kill()

    async def _lives_through(self, seconds):
        """Let time pass; the end of the process may be the end of it."""
        try:
            async with asyncio.timeout(seconds):
                await self._death.wait()
        except TimeoutError:
            return
        raise await self.death()
