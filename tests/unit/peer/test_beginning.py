"""An agent that cannot begin: whatever the reason, it leaves nothing behind in memory."""

import asyncio
from pathlib import Path

import pytest
from tests.unit.memory import Network
from tests.unit.peer.scripted import ScriptedTrainer
from tests.unit.virtual import run

from atoll.config import PeerConfig
from atoll.errors import DamagedError, RunError
from atoll.peer.agent import Agent
from atoll.train.shared import SharedVectors

PORT = 7777


def made(home, network: Network, shared: Path) -> Agent:
    """Return an agent that shares memory with its trainer in this file."""
    return Agent(
        home,
        PeerConfig(directory=str(home.directory), listen_port=PORT),
        transport=network.transport(home.identity.peer_id),
        start_trainer=ScriptedTrainer.start,
        emit=lambda _: None,
        make_vectors=lambda _, num_values: SharedVectors.create(shared, num_values),
    )


def test_where_its_port_is_taken(home, tmp_path):
    async def main():
        network, shared = Network(), tmp_path / "vectors"
        other = await network.transport(None).listen(None, host="", port=PORT)
        agent = made(home, network, shared)
        assert shared.exists()
        with pytest.raises(RunError, match="is taken"):
            await agent.run()
        assert not shared.exists()
        await other.close()

    run(main())


def test_where_its_newest_state_is_damaged(home, tmp_path):
    folder = home.directory / "states" / "000003"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b"{}")

    async def main():
        with pytest.raises(DamagedError, match="000003"):
            made(home, Network(), tmp_path / "vectors")

    asyncio.run(main())
    assert not (tmp_path / "vectors").exists()
