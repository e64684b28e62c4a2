"""The dashboard as an ASGI application: the page, the API, the stream, the metrics.

The page asks nobody but this host for anything, and its headers see to that.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from importlib import resources
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.ids import digest_of
from atoll.web.admin import Admin
from atoll.web.api import Api, Problem, as_json
from atoll.web.board import Board
from atoll.web.openapi import description
from atoll.web.stream import Stream

STALLED_S = 30.0  # a viewer that takes nothing for so long is gone
KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def application(board: Board, stream: Stream, admin: Admin | None = None) -> ASGIApp:
    """Return what serves this board; `stream` has to be run beside it.

    Without an `admin` there is nothing that changes anything.
    """
    api = Api(board)
    document = msgspec.json.encode(description())

    async def openapi(_: Request) -> Response:
        return Response(document, media_type="application/json")

    routes: list[BaseRoute] = [
        Route("/api/v1/overview", api.overview),
        Route("/api/v1/live", api.live),
        Route("/api/v1/health", api.health),
        Route("/api/v1/config", api.config),
        Route("/api/v1/rounds", api.rounds),
        Route("/api/v1/rounds/{round}", api.round),
        Route("/api/v1/journal", api.journal),
        Route("/api/v1/openapi.json", openapi),
        Route("/api/v1/stream", _EventStream(stream), methods=["GET"]),
        Route("/metrics", api.metrics),
        *(admin.routes() if admin is not None else ()),
        *_page(),
    ]
    handlers = {HTTPException: _problem}
    return _Headers(Starlette(routes=routes, exception_handlers=handlers))  # type: ignore[arg-type]


async def _problem(_: Request, error: HTTPException) -> Response:
    hint = "see /api/v1/openapi.json" if error.status_code in (400, 404, 405) else ""
    answer = as_json(Problem(error=error.detail, hint=hint), status=error.status_code)
    answer.headers.update(error.headers or {})
    return answer


# --- the page ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str

    async def __call__(self, request: Request) -> Response:
        tag = f'"{digest_of(self.content)[:16]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return Response(self.content, media_type=self.kind, headers={"etag": tag})


def _page() -> list[Route]:
    """Return a route for each file of the page, and `/` for the first one."""
    files = {
        file.name: _File(file.read_bytes(), KINDS[file.name.rpartition(".")[2]])
        for file in resources.files("atoll.web").joinpath("static").iterdir()
    }
    return [
        Route("/", files["index.html"].__call__),
        *(Route(f"/static/{name}", file.__call__) for name, file in files.items()),
    ]


# --- the stream ----------------------------------------------------------------------------------


class _EventStream:
    """Sends one viewer its events, until either side ends it or the viewer takes no more."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stream.is_full:
            problem = Problem(error="too many viewers", hint="try again in a minute")
            answer = as_json(problem, status=503)
            answer.headers["retry-after"] = "60"
            await answer(scope, receive, send)
            return
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        encoded = [(key.encode(), value.encode()) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})
        sending = asyncio.create_task(_send_all(self._stream.watch(), send))
        leaving = asyncio.create_task(_until_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_all(messages: AsyncIterator[bytes], send: Send) -> None:
    async with aclosing(messages):  # type: ignore[type-var]
        async for message in messages:
            async with asyncio.timeout(STALLED_S):
                await send({"type": "http.response.body", "body": message, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- every answer --------------------------------------------------------------------------------


class _Headers:
    """Adds to each answer what keeps a browser from being talked into something."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = MutableHeaders(scope=message)
                for key, value in HEADERS.items():
                    given.setdefault(key, value)
            await send(message)

        await self._app(scope, receive, with_headers)
