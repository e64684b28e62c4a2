"""Tests in virtual time: what would run in a thread runs in its turn, and no error goes unseen."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from atoll.sim import loop

ENOUGH_S = 4_000.0  # of virtual time: whoever still waits then, waits for ever


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Return what `main` returns, in virtual time."""
    bugs: list[dict[str, Any]] = []

    async def watched() -> Any:
        try:
            return await main
        finally:
            bugs.extend(asyncio.get_running_loop().bugs)  # type: ignore[attr-defined]

    result = loop.run(watched(), limit_s=ENOUGH_S)
    assert not bugs, bugs
    return result


def now() -> float:
    return asyncio.get_running_loop().time()
