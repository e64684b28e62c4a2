"""`atoll serve`: a model as programs ask for it, by OpenAI's API for completions."""

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.options import CacheOption, DeviceOption, ModelArgument, ReaderDirectoryOption
from atoll.cli.places import cache_directory
from atoll.cli.show import console, errors
from atoll.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from atoll.talk.source import Source, Speaker

MAX_CONNECTIONS = 256
LAST_WORDS_S = 2  # for answers under way, when it ends


def serve(
    model: ModelArgument,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 7790,
    key: Annotated[
        str,
        typer.Option(
            envvar="ATOLL_API_KEY",
            help="What programs must show as their API key; needed on an address of a network.",
            show_default="none",
        ),
    ] = "",
    waiting: Annotated[
        int, typer.Option(min=1, help="Completions that wait before one more is turned away.")
    ] = 64,
    device: DeviceOption = "auto",
    directory: ReaderDirectoryOption = None,
    cache: CacheOption = None,
) -> None:
    """Answer POST /v1/completions with the newest committed model, until Ctrl-C."""
    if not (key or _is_loopback(listen)):
        raise ConfigError(
            f"whoever reaches {listen} could use the model, and this machine's time",
            hint="give it a key: --key, or ATOLL_API_KEY in the environment",
        )
    # Imported here: torch takes seconds, which is too long for a --help.
    from atoll.cli.models import Place, opened
    from atoll.net.http import in_url, listening_at
    from atoll.talk.app import application
    from atoll.talk.engine import Engine
    from atoll.train.device import pick_device

    place = Place(model, directory, cache or cache_directory(), pick_device(device))
    hint = "choose another port with --port PORT (0: any free one)"
    listening = listening_at(listen, port, purpose="listen", hint=hint)
    with listening, opened(place) as using:
        speaker = using.first
        engine = Engine(_Watched(using.source, using.check), speaker, max_waiting=waiting)
        url = f"http://{in_url(listen)}:{listening.getsockname()[1]}/v1"
        what = f"{speaker.name}, {speaker.version}" if speaker.version else speaker.name
        console.say(f"serving {what}\n\n    {url}\n")
        server_of(application(engine, key=key)).run(sockets=[listening])


def server_of(app: "ASGIApp") -> "uvicorn.Server":
    """Return what serves this until Ctrl-C, and is kept busy by nobody who takes no answers."""
    import uvicorn

    from atoll.net.http_connection import GuardedConnection

    config = uvicorn.Config(
        app,
        http=GuardedConnection,
        ws="none",
        log_config=None,
        log_level="error",  # what strangers do wrong is no news
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    return uvicorn.Server(config)


class _Watched:
    """A source that tells on the terminal when the model is a newer one, and what goes wrong."""

    def __init__(self, source: "Source", check: Callable[[], list[str]]) -> None:
        self._source = source
        self._check = check

    def newer(self) -> "Speaker | None":
        for text in self._check():
            errors.say(text)
        speaker = self._source.newer()
        if speaker is not None:
            console.print(f"{speaker.version} is in use from now on", markup=False)
        return speaker


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
