"""What the operator can do over HTTP: POST /api/v1/admin/ACTION with a signed JSON object.

Never by GET; from no other site (a browser says where a request comes from); with no cookie. The
order of the checks is from cheap to dear: what a stranger sends is never parsed.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.clock import wall_s
from atoll.errors import ConfigError, RunError
from atoll.ids import PeerId
from atoll.net.http import body_of
from atoll.web.api import as_json
from atoll.web.signature import Guard

PATH = "/api/v1/admin/"
MAX_BODY_BYTES = 64_000  # the ids of some hundred reducers
BODY_S = 10.0  # for all of it to arrive
S = TypeVar("S", bound=Struct)


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an action that needs none: {}."""


class Remove(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    peer: PeerId
    reason: Annotated[str, Meta(max_length=200)] = ""


class Invite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uses: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    days: Annotated[float, Meta(gt=0, le=3650)] = 7.0


class Reducers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is to average; none: all that can be dialled."""

    peers: Annotated[tuple[PeerId, ...], Meta(max_length=1000)] = ()


class Done(Struct, frozen=True, kw_only=True):
    """What was done; `invite` is the line to paste, where one was asked for."""

    done: str
    invite: str = ""


class Operator(Protocol):
    """What carries an action out; each raises ConfigError where it makes no sense."""

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def remove(self, peer: PeerId, reason: str) -> None: ...
    async def invite(self, *, uses: int, days: float) -> str: ...
    async def choose_reducers(self, peers: tuple[PeerId, ...]) -> None: ...
    def stop(self) -> None: ...


class Admin:
    """The routes of the actions. `token` is the operator's, and never leaves this machine."""

    def __init__(self, operator: Operator, *, token: str) -> None:
        self._operator = operator
        self._guard = Guard(token)
        self._actions: dict[str, Callable[[bytes], Awaitable[Done]]] = {
            "pause": self._pause,
            "resume": self._resume,
            "remove": self._remove,
            "invite": self._invite,
            "reducers": self._choose,
            "stop": self._stop,
        }

    def routes(self) -> list[Route]:
        return [Route(f"{PATH}{{action}}", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        action = self._actions.get(request.path_params["action"])
        if action is None:
            raise HTTPException(404, f"the actions are {', '.join(self._actions)}")
        _require_own_page(request)
        body = await _body(request)
        header = request.headers.get("authorization", "")
        now_s = wall_s()
        if why := self._guard.judge(header, path=request.url.path, body=body, now_s=now_s):
            challenge = self._guard.challenge(now_s=now_s)
            raise HTTPException(401, why, headers={"www-authenticate": challenge})
        try:
            return as_json(await action(body))
        except ConfigError as error:
            raise HTTPException(409, str(error)) from error
        except RunError as error:  # the host cannot go on, and ends
            raise HTTPException(503, str(error)) from error

    # --- the actions ----------------------------------------------------------------------------

    async def _pause(self, body: bytes) -> Done:
        _parsed(body, Nothing)
        await self._operator.pause()
        return Done(done="no new round begins; those that are open come to their end")

    async def _resume(self, body: bytes) -> Done:
        _parsed(body, Nothing)
        await self._operator.resume()
        return Done(done="rounds begin again")

    async def _remove(self, body: bytes) -> Done:
        wanted = _parsed(body, Remove)
        await self._operator.remove(wanted.peer, wanted.reason)
        return Done(done=f"{wanted.peer} is out of the run, and its key is refused")

    async def _invite(self, body: bytes) -> Done:
        wanted = _parsed(body, Invite)
        invite = await self._operator.invite(uses=wanted.uses, days=wanted.days)
        return Done(
            done=f"an invite for {wanted.uses}, good for {wanted.days:g} days", invite=invite
        )

    async def _choose(self, body: bytes) -> Done:
        wanted = _parsed(body, Reducers)
        await self._operator.choose_reducers(wanted.peers)
        who = (
            f"only {len(wanted.peers)} members average" if wanted.peers else "all that can average"
        )
        return Done(done=f"{who}, from the next round on")

    async def _stop(self, body: bytes) -> Done:
        _parsed(body, Nothing)
        self._operator.stop()
        return Done(done="the host stops; started again, it goes on")


def _require_own_page(request: Request) -> None:
    """Refuse what another site makes a browser send.

    Raises:
        HTTPException: it comes from another site, or is not what a script of ours sends.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "this comes from another site")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "this comes from another site")
    # A form of another site cannot send this type without being asked for by a preflight.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "send application/json")


async def _body(request: Request) -> bytes:
    """Return the body, unless it says itself that it is too long."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:18]) > MAX_BODY_BYTES:
        raise HTTPException(413, f"at most {MAX_BODY_BYTES} bytes")
    return await body_of(request, most_bytes=MAX_BODY_BYTES, within_s=BODY_S)


def _parsed(body: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, str(error)) from error
