"""`atoll admin`: what an operator can do to a run that is served, from the host's machine."""

import http.client
import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from atoll.cli.operator import TOKEN_FILE, URL_FILE
from atoll.cli.options import DaysOption, UsesOption, valid_s
from atoll.cli.places import run_directory
from atoll.cli.show import console
from atoll.errors import ConfigError, RunError
from atoll.host.stores import read_journal
from atoll.ids import PeerId
from atoll.net.records import Admitted, Genesis

ACTIONS = ("pause", "resume", "remove", "invite", "reducers", "stop")
ANSWER_S = 30.0
BUILT_IN = "built-in"


def admin(
    run: Annotated[Path, typer.Argument(help="The run's directory, or its run.toml.")],
    action: Annotated[str, typer.Argument(help=", ".join(ACTIONS))],
    peers: Annotated[
        list[str] | None,
        typer.Argument(help="Names or ids: whom to remove, or who is to average (none: all)."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why a peer is removed, for the journal.")] = "",
    uses: UsesOption = 1,
    days: DaysOption = 7.0,
) -> None:
    """Pause or resume a run, remove a peer, make an invite, choose who averages, stop the host."""
    valid_s(days)  # what is wrong with that is said here, before anybody is asked
    directory = run_directory(run)
    if action not in ACTIONS:
        raise ConfigError(f"no action {action!r}", hint=f"one of {', '.join(ACTIONS)}")
    ids = [_peer_id(directory, peer) for peer in peers or []]
    bodies: dict[str, dict[str, Any]] = {
        "remove": {"peer": ids[0] if ids else "", "reason": reason},
        "invite": {"uses": uses, "days": days},
        "reducers": {"peers": ids},
    }
    if len(ids) != 1 and action == "remove":
        raise ConfigError("name the one peer to remove", hint="atoll admin RUN remove NAME")
    if ids and action not in ("remove", "reducers"):
        raise ConfigError(f"{action} needs no peer")
    answer = _post(directory, action, bodies.get(action, {}))
    console.say(answer["done"])
    if answer["invite"]:
        console.say(f"\n    atoll join {answer['invite']}\n")


def _peer_id(directory: Path, wanted: str) -> PeerId:
    """Return the peer of this name, or with an id that begins so.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found: set[PeerId] = set()
    for entry in read_journal(directory):
        match entry.record:
            case Admitted(peer=peer, name=name) if name == wanted or peer.startswith(wanted):
                found.add(peer)
            case Genesis(built_in=peer) if wanted == BUILT_IN or peer.startswith(wanted):
                found.add(peer)
            case _:
                pass
    if len(found) != 1:
        many = f"{len(found)} peers" if found else "no peer"
        raise ConfigError(f"{many} of the name or id {wanted!r}", hint="see: atoll status RUN")
    return found.pop()


def _post(directory: Path, action: str, body: dict[str, Any]) -> dict[str, str]:
    """Return the answer of the host that serves this directory.

    Raises:
        RunError: there is none, or it refuses.
    """
    # Imported here, with the rest of the web: other commands do without.
    from atoll.web.signature import offered_nonce, sign

    url, token = directory / URL_FILE, directory / TOKEN_FILE
    hint = f"start it, with its dashboard: atoll host {directory}"
    if not (url.exists() and token.exists()):
        raise RunError("no host serves this run from this directory", hint=hint)
    address, path = url.read_text(encoding="utf-8").strip(), f"/api/v1/admin/{action}"
    content = json.dumps(body).encode()
    try:
        _, _, challenge = _ask(address, path, content)
        signed = sign(
            token.read_text(encoding="utf-8").strip(),
            path=path,
            nonce=offered_nonce(challenge),
            body=content,
        )
        status, answer, _ = _ask(address, path, content, authorization=signed)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RunError(f"the host does not answer at {address}: {error}", hint=hint) from error
    if status != http.client.OK:
        raise RunError(f"the host refuses: {answer['error']}", hint=answer["hint"])
    return answer


def _ask(
    address: str, path: str, content: bytes, *, authorization: str = ""
) -> tuple[int, dict[str, str], str]:
    """Return the status, the answer, and what a signature has to contain."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=ANSWER_S)
    headers = {"content-type": "application/json", "authorization": authorization}
    try:
        connection.request("POST", path, content, headers)
        response = connection.getresponse()
        answer: dict[str, str] = json.loads(response.read())
        return response.status, answer, response.getheader("www-authenticate") or ""
    finally:
        connection.close()
