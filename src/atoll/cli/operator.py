"""The operator's will, carried out by the host of this process; and the token that proves it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

from atoll.cli.options import DAY_S
from atoll.errors import ConfigError, RunError
from atoll.host import operate
from atoll.host.service import Host
from atoll.ids import PeerId
from atoll.net.identity import write_private

TOKEN_FILE = "operator.token"
LEAST_CHARACTERS = 20  # of a token that somebody has written by hand
URL_FILE = "dashboard.url"  # where this machine finds the dashboard of the host that runs


def operator_token(directory: Path) -> str:
    """Return the operator's token of this run's directory, made now if there is none.

    Raises:
        RunError: what is there is no token, or none can be written.
    """
    path = directory / TOKEN_FILE
    if not path.exists():
        write_private(path, token_hex(32).encode() + b"\n")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < LEAST_CHARACTERS:
        raise RunError(
            f"{path} has a token of {len(token)} characters: anybody could guess it",
            hint="delete that file: the next start makes a new one",
        )
    return token


class HostOperator:
    """Does on a host what `web.admin.Operator` promises."""

    def __init__(self, host: Host, *, stop: Callable[[], object]) -> None:
        self._host = host
        self._stop = stop

    async def pause(self) -> None:
        await self._leading().operate(operate.pause)

    async def resume(self) -> None:
        await self._leading().operate(operate.resume)

    async def remove(self, peer: PeerId, reason: str) -> None:
        host = self._leading()
        self._require_member(peer)
        if peer == host.run.built_in:
            raise ConfigError("the built-in member belongs to the host, and cannot be removed")
        await host.operate(operate.remove, peer, reason)

    async def invite(self, *, uses: int, days: float) -> str:
        return await self._leading().make_invite(uses=uses, valid_s=days * DAY_S)

    async def choose_reducers(self, peers: tuple[PeerId, ...]) -> None:
        host = self._leading()
        for peer in peers:
            self._require_member(peer)
        await host.operate(operate.choose_reducers, peers)

    def stop(self) -> None:
        asyncio.get_running_loop().call_soon(self._stop)

    def _leading(self) -> Host:
        if not self._host.leads:
            raise ConfigError("this host does not lead the run now: ask the one that does")
        return self._host

    def _require_member(self, peer: PeerId) -> None:
        if peer not in self._host.members:
            raise ConfigError(f"{peer} is no member of this run")
