"""OpenAI's API for completions as an ASGI application, on one model.

POST /v1/completions   GET /v1/models   GET /v1/models/NAME
"""

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from atoll.clock import wall_s
from atoll.errors import AtollError
from atoll.exchange.tasks import running
from atoll.net.http import body_of
from atoll.talk import openai
from atoll.talk.completion import Likelihood, Piece
from atoll.talk.engine import Engine, Job
from atoll.talk.openai import Answer, ApiError, Choice
from atoll.units import MIB

MAX_BODY_BYTES: Final = MIB
BODY_S: Final = 30.0  # for all of a body to arrive
WHAT_THERE_IS: Final = "there are POST /v1/completions and GET /v1/models, for a model without chat"
END: Final = b"data: [DONE]\n\n"


def application(engine: Engine, *, key: str = "") -> Starlette:
    """Return what serves this engine, and runs it; with a key, only to those who have it."""
    api = _Api(engine, key=key)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with running(engine.run()):
            yield

    return Starlette(
        routes=[
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
        ],
        exception_handlers={AtollError: _told, HTTPException: _told},
        lifespan=lifespan,
    )


async def _told(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        hint = f"; {WHAT_THERE_IS}" if error.status_code in (404, 405) else ""
        error = ApiError(f"{error.detail}{hint}", status=error.status_code)
    elif not isinstance(error, ApiError):
        error = ApiError(str(error), status=500)
    headers = {"retry-after": "5"} if error.status == 429 else {}
    return Response(error.body(), error.status, headers, media_type="application/json")


class _Api:
    def __init__(self, engine: Engine, *, key: str) -> None:
        self._engine = engine
        self._key = key.encode()
        self._created = int(wall_s())

    async def models(self, request: Request) -> Response:
        self._admit(request)
        return _json(openai.models(self._engine.speaker, created=self._created))

    async def model(self, request: Request) -> Response:
        self._admit(request)
        speaker = self._engine.speaker
        if request.path_params["name"] != speaker.name:
            raise openai.unknown_model(request.path_params["name"])
        return _json(openai.model(speaker, created=self._created))

    async def completions(self, request: Request) -> Response:
        self._admit(request)
        # A form of another site cannot send this type without being asked for by a preflight.
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise ApiError("send application/json", status=415)
        body = await body_of(request, most_bytes=MAX_BODY_BYTES, within_s=BODY_S)
        asked = openai.parse(body, self._engine.speaker)
        if not self._engine.has_room(len(asked.jobs)):
            raise ApiError("too many are waiting; try again in a while", status=429)
        telling = _Telling(self._engine, asked)
        if asked.stream:
            return StreamingResponse(telling.messages(), media_type="text/event-stream")
        return _json(await _unless_gone(request, telling))

    def _admit(self, request: Request) -> None:
        """Let those in who have the key, if there is one.

        Raises:
            ApiError: they have not.
        """
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._key)
        if self._key and not (scheme.lower() == "bearer" and is_right):
            raise ApiError("the key is missing or wrong", status=401, code="invalid_api_key")


async def _unless_gone(request: Request, telling: "_Telling") -> Answer:
    """Return the whole answer, but do not go on with it for somebody who has left."""
    whole = asyncio.create_task(telling.whole())
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((whole, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            raise ApiError("the client has gone", status=499)
        return whole.result()
    finally:
        for task in (whole, leaving):
            task.cancel()
        await asyncio.gather(whole, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")


# --- one answer ----------------------------------------------------------------------------------


class _Telling:
    """Turns the pieces of the jobs of one request into its answer, whole or as they come."""

    def __init__(self, engine: Engine, asked: openai.Request) -> None:
        self._engine = engine
        self._asked = asked
        self._id = f"cmpl-{token_hex(12)}"
        self._created = int(wall_s())
        self._num_tokens = 0

    async def whole(self) -> Answer:
        choices = []
        with self._engine.ask(self._asked.jobs):
            for index, job in enumerate(self._asked.jobs):
                choices.append(await self._choice(index, job))
        return self._answer(choices, usage=True)

    async def _choice(self, index: int, job: Job) -> Choice:
        text, told, finish = "", list[tuple[Likelihood, int]](), None
        async for piece in job.read():
            if piece.likelihood is not None:
                told.append((piece.likelihood, len(text)))
            self._count(piece)
            text, finish = text + piece.text, piece.finish
        return self._told(text, index, told, finish)

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events; an error in the midst of it is one, too."""
        try:
            with self._engine.ask(self._asked.jobs):
                for index, job in enumerate(self._asked.jobs):
                    num_characters = 0
                    async for piece in job.read():
                        self._count(piece)
                        likelihood = piece.likelihood
                        told = [] if likelihood is None else [(likelihood, num_characters)]
                        num_characters += len(piece.text)
                        if piece.text or told or piece.finish:
                            choice = self._told(piece.text, index, told, piece.finish)
                            yield _event(self._answer([choice], usage=False))
            if self._asked.include_usage:
                yield _event(self._answer([], usage=True))
        except AtollError as error:
            yield b"data: " + ApiError(str(error), status=500).body() + b"\n\n"
        yield END

    def _count(self, piece: Piece) -> None:
        self._num_tokens += piece.is_token

    def _told(
        self, text: str, index: int, told: list[tuple[Likelihood, int]], finish: Any
    ) -> Choice:
        tokenizer = self._engine.speaker.tokenizer
        logprobs = openai.logprobs(told, tokenizer) if told else None
        return Choice(text=text, index=index, logprobs=logprobs, finish_reason=finish)

    def _answer(self, choices: list[Choice], *, usage: bool) -> Answer:
        return Answer(
            id=self._id,
            created=self._created,
            model=self._engine.speaker.name,
            choices=choices,
            object="text_completion",
            system_fingerprint=self._engine.speaker.version,
            usage=openai.usage(self._asked, num_tokens=self._num_tokens) if usage else None,
        )


def _event(answer: Answer) -> bytes:
    return b"data: " + msgspec.json.encode(answer) + b"\n\n"
