"""A peer's life in a terminal: a member, then an agent in the hours that its owner has named.

invite -> member -> [its hours begin -> agent, shown and obeyed -> it leaves] -> done
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from atoll import system
from atoll.cli.enrolment import become_member
from atoll.cli.given import check
from atoll.cli.owner import Owner
from atoll.cli.part import Part
from atoll.cli.part_view import shown
from atoll.cli.places import cache_directory, peer_directory
from atoll.cli.service import install, uninstall
from atoll.cli.show import console
from atoll.clock import wall_s
from atoll.config import PeerConfig
from atoll.errors import ConfigError
from atoll.events import Downloading, Emit, EventLog, Training
from atoll.exchange.tasks import running
from atoll.net.invite import Invite
from atoll.net.listener import Limits
from atoll.net.site import SiteKey
from atoll.net.transport import TcpTransport
from atoll.peer.agent import Agent
from atoll.peer.home import Home, locked, read_run_file
from atoll.peer.hours import Hours
from atoll.peer.trainer import StartTrainer
from atoll.train.machines import Machines

REFRESH_S = 0.5


def _completed(peer: PeerConfig, invite: str) -> PeerConfig:
    """Return the config with this machine's values where nobody has said anything."""
    if not peer.directory and not invite:
        raise ConfigError("no invite, and no --dir", hint="paste the line that the host printed")
    return replace(
        peer,
        directory=peer.directory or str(peer_directory(Invite.parse(invite).authority)),
        name=peer.name or socket.gethostname(),
        cache_directory=peer.cache_directory or str(cache_directory()),
    )


def keep_as_service(invite: str, peer: PeerConfig, *, wanted: bool) -> None:
    """Become a member if we are none, and have a service that takes part from then on; or none.

    Raises:
        AtollError: the host turned us away, or this system has no services that we know.
    """
    peer = _completed(peer, invite)
    directory = Path(peer.directory).resolve()
    if not wanted:
        uninstall(directory)
        return
    check(peer)
    if invite:
        asyncio.run(become_member(Invite.parse(invite), directory, name=peer.name))
    cache = Path(peer.cache_directory).resolve()
    install(replace(peer, directory=str(directory), cache_directory=str(cache)))


async def take_part(
    invite: str, peer: PeerConfig, *, start_trainer: StartTrainer, obeys_keys: bool = False
) -> None:
    """Become a member if we are none, and live an agent's life. Without an invite: as before.

    It ends when the run is complete, or when it is cancelled. Where it `obeys_keys`, the terminal
    is its own, and Ctrl-C ends it as well.

    Raises:
        AtollError: the host turned us away, or this machine cannot go on.
    """
    peer = _completed(peer, invite)
    hours = Hours.parse(peer.hours)
    directory = Path(peer.directory)
    if invite:
        await become_member(Invite.parse(invite), directory, name=peer.name)
    system.give_way(peer.nice)
    run_file = read_run_file(directory)
    locked(directory).release()  # if another process has it, say so before anything is drawn
    part = Part(run_file.config, began_at=wall_s(), host=run_file.host)
    part.say(f"joining {run_file.config.name} at {run_file.host}:{run_file.port}", at=wall_s())
    owner = Owner(part, directory, hours, give_up=_ender())
    if obeys_keys:
        _hear_keys(owner)
    with shown(part, console, alone=obeys_keys) as show:
        try:
            async with running(_refresh(show)):
                while not owner.is_gone:
                    await owner.until_open()
                    life = _Life(peer, part, owner, start_trainer=start_trainer)
                    if await life.live():
                        return
        finally:
            show()


@dataclass(frozen=True)
class _Life:
    """A peer from its start until it leaves; its part in the run may have several."""

    peer: PeerConfig
    part: Part
    owner: Owner
    start_trainer: StartTrainer

    async def live(self) -> bool:
        """Return whether the run is complete."""
        peer, part = self.peer, self.part
        home = Home(Path(peer.directory), keep_states=peer.keep_states)
        log = EventLog(
            home.directory / "events.jsonl",
            show=lambda event: part.hear(event, at=wall_s()),
            passing=(Training, Downloading),
        )
        limits = Limits(
            upload_bytes_per_s=peer.max_upload_bytes_per_s,
            download_bytes_per_s=peer.max_download_bytes_per_s,
            congestion=peer.congestion,
        )
        transport = TcpTransport(home.identity, limits)
        machines = _machines(peer, part, home.directory, emit=log.emit)
        start_trainer = self.start_trainer if machines is None else machines.start
        agent = Agent(home, peer, transport=transport, start_trainer=start_trainer, emit=log.emit)
        try:
            async with (
                nullcontext() if machines is None else machines.listening(),
                running(self.owner.watch(agent, machines)),
                running(self._measure(transport)),
            ):
                return await agent.run()
        finally:
            log.close()

    async def _measure(self, transport: TcpTransport) -> None:
        """Note what moves on the line, on top of what moved in lives before."""
        sent, received = self.part.sent, self.part.received
        sent_before, received_before = sent.num_bytes, received.num_bytes
        while True:
            sent.note(sent_before + transport.num_sent, at=wall_s())
            received.note(received_before + transport.num_received, at=wall_s())
            await asyncio.sleep(REFRESH_S)


def _machines(peer: PeerConfig, part: Part, directory: Path, *, emit: Emit) -> Machines | None:
    """Return what waits for the other machines of this peer, and say how they come; or None.

    Raises:
        ConfigError: nobody has said where they reach this one.
    """
    if peer.machines == 1:
        return None
    key = SiteKey.of_peer(directory, peer.site)
    part.say(
        f"on each of the other machines ({peer.machines - 1}) start: atoll assist {key.format()}",
        at=wall_s(),
    )
    return Machines(peer, key, emit=emit)


async def _refresh(show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(REFRESH_S)


def _ender() -> Callable[[], object]:
    """Return what cancels the present task."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancel


def _hear_keys(owner: Owner) -> None:
    """Let Ctrl-C be the owner's, and a request to end be one at once."""
    loop = asyncio.get_running_loop()
    system.on_interrupt(lambda: loop.call_soon_threadsafe(owner.interrupt))
    system.on_request_to_end(lambda: loop.call_soon_threadsafe(owner.end))
