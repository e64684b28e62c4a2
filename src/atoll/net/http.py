"""What the dashboard and `atoll serve` do alike for those who speak HTTP to them."""

import asyncio
import socket
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from atoll.errors import RunError

if TYPE_CHECKING:
    from starlette.requests import Request


def listening_at(host: str, port: int, *, purpose: str, hint: str) -> socket.socket:
    """Return a socket on which others can connect; port 0: any free one.

    Raises:
        RunError: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RunError(f"cannot {purpose} at {host}:{port}: {error.strerror}", hint=hint) from error


def in_url(host: str) -> str:
    """Return the host as a URL has it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


async def body_of(request: "Request", *, most_bytes: int, within_s: float) -> bytes:
    """Return the body; one that is too long, or takes too long, is not read to its end.

    Raises:
        HTTPException: it is one of these.
    """
    body = b""
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise HTTPException(413, f"at most {most_bytes} bytes")
    except TimeoutError as error:
        raise HTTPException(408, "the body took too long to arrive") from error
    return body
