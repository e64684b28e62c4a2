"""The description of the API (OpenAPI 3.1), made from the structs that it answers with."""

from typing import Any

import msgspec

from atoll import __version__
from atoll.config import RunConfig
from atoll.host.live import Live
from atoll.host.overview import Overview, RoundView
from atoll.web.admin import Done, Invite, Nothing, Reducers, Remove
from atoll.web.api import MAX_ENTRIES, MAX_ROUNDS, MAX_START, Health, JournalPage, Problem, Rounds

READS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/api/v1/overview": (Overview, "How the run stands: totals, the loss of each round, the peers"),
    "/api/v1/live": (Live, "What is going on now: who is there, how far the open rounds are"),
    "/api/v1/health": (Health, "What is wrong now, in words, and what to do about it"),
    "/api/v1/config": (RunConfig, "The config of the run; its digest is the run's name"),
    "/api/v1/rounds": (
        Rounds,
        "The newest rounds, with times, rosters, reasons; fewer in a large run",
    ),
    "/api/v1/rounds/{round}": (RoundView, "One of the newest rounds"),
    "/api/v1/journal": (JournalPage, "Entries of the journal, with hashes and signatures"),
}


def _number(name: str, *, least: int, most: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return {"name": name, "in": "query", "schema": schema}


PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "/api/v1/rounds": [_number("limit", least=1, most=MAX_ROUNDS)],
    "/api/v1/rounds/{round}": [
        {
            "name": "round",
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
    "/api/v1/journal": [
        _number("start", least=0, most=MAX_START),
        _number("limit", least=1, most=MAX_ENTRIES),
    ],
}


ACTIONS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "pause": (Nothing, "Let no new round begin"),
    "resume": (Nothing, "Let rounds begin again"),
    "remove": (Remove, "Put a peer out of the run for good"),
    "invite": (Invite, "Make an invite"),
    "reducers": (Reducers, "Say who averages from the next round on; nobody: all that can"),
    "stop": (Nothing, "Stop the host; started again, it goes on"),
}
SIGNED = {
    "operator": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "Atoll nonce=NONCE, mac=HEX, where mac is HMAC-SHA256 with the operator's "
        "token over POST, path and nonce, a line each, and the body. The nonce is that of the "
        "WWW-Authenticate of a request without a signature",
    }
}


def description() -> dict[str, Any]:
    """Return the document that /api/v1/openapi.json serves."""
    actions = [kind for kind, _ in ACTIONS.values()]
    kinds = [*(kind for kind, _ in READS.values()), *actions, Done, Problem]
    references, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    problem = _answer("What is wrong, and what to do", references[-1])
    paths: dict[str, Any] = {
        path: {
            "get": {
                "summary": about,
                "parameters": PARAMETERS.get(path, []),
                "responses": {"200": _answer(about, reference), "4XX": problem},
            }
        }
        for (path, (_, about)), reference in zip(READS.items(), references, strict=False)
    }
    for action, (kind, about) in ACTIONS.items():
        paths[f"/api/v1/admin/{action}"] = {"post": _action(kind, about)}
    paths["/api/v1/stream"] = {"get": _text("text/event-stream", STREAM)}
    paths["/metrics"] = {"get": _text("text/plain", "The run as Prometheus reads it")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "atoll",
            "version": __version__,
            "description": "What can be seen of a run. Keys may be added within a version.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": SIGNED},
    }


STREAM = (
    "Server-sent events: a `snapshot`, then a `delta` whenever something has changed, a `beat` "
    "when nothing has, an `end` when the host stops. Their form may change: programs use the rest"
)


def _action(kind: type[msgspec.Struct], about: str) -> dict[str, Any]:
    def schema(of: type[msgspec.Struct]) -> dict[str, Any]:
        return {"$ref": f"#/components/schemas/{of.__name__}"}

    return {
        "summary": about,
        "security": [{"operator": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema(kind)}},
        },
        "responses": {
            "200": _answer("What was done", schema(Done)),
            "4XX": _answer("Why it was not", schema(Problem)),
        },
    }


def _answer(about: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _text(media_type: str, about: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string"}}}
    return {"summary": about, "responses": {"200": {"description": about, "content": content}}}
