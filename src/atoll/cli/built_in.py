"""The host's built-in member: an agent without a trainer, in a process that ends with the host's.

python -m atoll.cli.built_in DIRECTORY DATASET LISTEN PORT ADVERTISE
"""

import asyncio
import os
import sys
import threading
from pathlib import Path

from atoll.cli.show import Lines
from atoll.config import PeerConfig
from atoll.data.shards import Dataset
from atoll.errors import AtollError
from atoll.events import EventLog
from atoll.exchange.initial import INITIAL_FOLDER
from atoll.net.transport import TcpTransport
from atoll.peer.agent import Agent
from atoll.peer.home import Home


async def _keep(peer: PeerConfig, dataset: Path) -> None:
    directory = Path(peer.directory)
    initial = directory.parent / INITIAL_FOLDER
    home = Home(directory, keep_states=peer.keep_states, initial=initial)
    log = EventLog(directory / "events.jsonl", show=Lines().show)
    transport = TcpTransport(home.identity)
    agent = Agent(home, peer, transport=transport, start_trainer=None, emit=log.emit)
    agent.serve_dataset(Dataset.open(dataset))
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def wait_for_the_host() -> None:
        # Until the host is gone. `sys.stdin` would hold a lock that our own end waits for.
        os.read(sys.stdin.fileno(), 1)
        loop.call_soon_threadsafe(task.cancel)

    threading.Thread(target=wait_for_the_host, daemon=True).start()
    try:
        await agent.run()
    except asyncio.CancelledError:
        pass
    finally:
        log.close()


if __name__ == "__main__":
    _, _directory, _dataset, _listen, _port, _advertise = sys.argv
    _peer = PeerConfig(
        directory=_directory,
        name="built-in",
        listen_host=_listen,
        listen_port=int(_port),
        advertise_host=_advertise,
    )
    try:
        asyncio.run(_keep(_peer, Path(_dataset)))
    except AtollError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
