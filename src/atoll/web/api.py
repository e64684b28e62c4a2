"""The JSON API, version 1: what programs read. Every answer is a struct; `openapi.py` lists them.

Within a version keys are added, never renamed, retyped or removed. What costs something to put
together is put together twice a second at most, however many ask.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from atoll.host.health import Concern
from atoll.host.live import Live
from atoll.host.overview import RoundView
from atoll.ids import Digest
from atoll.net.records import Entry
from atoll.web import metrics
from atoll.web.board import Board, find_round

FRESH_S = 0.5  # for so long an answer is given again
MAX_ENTRIES = 200  # of the journal, in one answer
MAX_START = 2**53  # of the journal: as far as any reader of JSON counts
MAX_ROUNDS = 120
MAX_NAMED = 20_000  # peers that the rounds of one answer name: in a large run these are fewer


class Problem(Struct, frozen=True, kw_only=True):
    """What an answer says that is none: what is wrong, and what to do."""

    error: str
    hint: str = ""


class Health(Struct, frozen=True, kw_only=True):
    """What is wrong now, the worst first; `ok`: nothing is, or only notes."""

    ok: bool
    concerns: list[Concern]


class Rounds(Struct, frozen=True, kw_only=True):
    rounds: list[RoundView]  # in order, the newest last


class JournalEntry(Struct, frozen=True, kw_only=True):
    """A record in its place in the chain: `hash` is that of `previous`, `seq` and the record."""

    seq: Annotated[int, Meta(ge=0)]
    previous: Digest
    hash: Digest
    signature: str  # hex
    record: msgspec.Raw  # as it was written: canonical JSON, the kind under "kind"


class JournalPage(Struct, frozen=True, kw_only=True):
    num_entries: int  # of the whole journal
    entries: list[JournalEntry]


class Api:
    """The answers. Each method is a route of the same name."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._kept: dict[str, tuple[float, bytes]] = {}

    async def overview(self, _: Request) -> Response:
        return self._answer("overview", self._board.catch_up)

    async def live(self, _: Request) -> Response:
        return self._answer("live", self._live)

    async def health(self, _: Request) -> Response:
        return self._answer("health", self._health)

    async def config(self, _: Request) -> Response:
        return self._answer("config", lambda: self._board.config)

    async def rounds(self, request: Request) -> Response:
        limit = number(request, "limit", default=SHOWN, least=1, most=MAX_ROUNDS)
        self._board.catch_up()
        return as_json(Rounds(rounds=_within(self._board.rounds[-limit:])))

    async def round(self, request: Request) -> Response:
        self._board.catch_up()
        found = find_round(self._board, _whole(request.path_params["round"]))
        if found is None:
            raise HTTPException(404, "that round is not among the newest; the journal has it")
        return as_json(found)

    async def journal(self, request: Request) -> Response:
        entries = self._board.entries
        limit = number(request, "limit", default=50, least=1, most=MAX_ENTRIES)
        newest = max(0, len(entries) - limit)
        start = number(request, "start", default=newest, least=0, most=MAX_START)
        page = [_journal_entry(entry) for entry in entries[start : start + limit]]
        return as_json(JournalPage(num_entries=len(entries), entries=page))

    async def metrics(self, _: Request) -> Response:
        def text() -> bytes:
            return metrics.render(self._board.catch_up(), self._board.live())

        return Response(self._fresh("metrics", text), media_type=metrics.CONTENT_TYPE)

    # --- how ------------------------------------------------------------------------------------

    def _live(self) -> Live:
        self._board.catch_up()
        return self._board.live()

    def _health(self) -> Health:
        found = self._board.health(self._live())
        ok = all(concern.severity == "note" for concern in found)
        return Health(ok=ok, concerns=found)

    def _answer(self, name: str, make: Callable[[], Struct]) -> Response:
        body = self._fresh(name, lambda: msgspec.json.encode(make()))
        return Response(body, media_type="application/json")

    def _fresh(self, name: str, make: Callable[[], bytes]) -> bytes:
        now = asyncio.get_running_loop().time()
        if name not in self._kept or self._kept[name][0] + FRESH_S < now:
            self._kept[name] = (now, make())
        return self._kept[name][1]


SHOWN = 40


def as_json(answer: Struct, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """Return the number in the query of this name.

    Raises:
        HTTPException: it is none, or not within the limits.
    """
    value = _whole(request.query_params.get(name, str(default)))
    if not least <= value <= most:
        raise HTTPException(400, f"{name} is a whole number from {least} to {most}")
    return value


def _whole(text: str) -> int:
    """Return the number that the text is; -1: none, or one of more digits than anybody counts."""
    is_one = text.isascii() and text.isdecimal() and len(text) <= 16
    return int(text) if is_one else -1


def _within(rounds: list[RoundView]) -> list[RoundView]:
    """Return the newest of these rounds that name `MAX_NAMED` peers at most; one at least."""
    num_named = list(accumulate(len(rnd.waited) + len(rnd.roster) for rnd in reversed(rounds)))
    return rounds[-max(1, bisect_right(num_named, MAX_NAMED)) :]


def _journal_entry(entry: Entry) -> JournalEntry:
    return JournalEntry(
        seq=entry.seq,
        previous=entry.previous,
        hash=entry.hash,
        signature=entry.signature.hex(),
        record=msgspec.Raw(entry.body),
    )
