"""The agent's handle on a training loop of somebody else's, which has started the agent.

    loop (see `attach`) <-- a socket, the agent's standard input --> agent

Where `launch` starts a process again when it dies, nobody can start this one: with it, the agent
leaves the run.
"""

import asyncio
import os
import socket
from pathlib import Path
from typing import Final

from atoll.config import PeerConfig, RunConfig
from atoll.train.channel import Failed, Setup
from atoll.train.launch import Trainer, TrainerDied
from atoll.train.shared import SharedVectors

GONE: Final = Failed(reason="the loop that trains has ended", hint="start it again")


class AttachedLoop:
    """`start` is a StartTrainer; `gone` is set when the loop is."""

    def __init__(self, connection: socket.socket) -> None:
        self.gone = asyncio.Event()
        self._connection = connection
        self._writer: asyncio.StreamWriter | None = None

    async def start(
        self,
        config: RunConfig,
        peer: PeerConfig,
        *,
        vectors: SharedVectors,
        dataset: Path,
        log_path: Path,  # noqa: ARG002 - it has its own
    ) -> Trainer:
        """Return the loop as a trainer; a second time, never: whoever waits for it will leave.

        Raises:
            TrainerDied: it has ended before it was ready.
        """
        if self._writer is not None:
            await asyncio.get_running_loop().create_future()
        reader, self._writer = await asyncio.open_connection(sock=self._connection)
        trainer = _Loop(self, (reader, self._writer))
        await trainer.set_up(
            Setup(config=config, peer=peer, vectors=str(vectors.path), dataset=str(dataset))
        )
        return trainer

    @property
    def pid(self) -> int:
        return os.getppid()

    def kill(self) -> None:
        """End the connection; the loop hears of it after its step."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def ended(self) -> Failed:
        self.gone.set()
        return GONE


class _Loop(Trainer):
    async def death(self) -> TrainerDied:
        """Never return: its end is no death to make good: the agent leaves with it."""
        never: asyncio.Future[TrainerDied] = asyncio.get_running_loop().create_future()
        return await never
