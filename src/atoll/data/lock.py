"""Processes of one machine, or of one file system, share a cache of datasets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from atoll.ids import Digest

LOOK_S: Final = 0.5  # between looks whether another process is done


@asynccontextmanager
async def alone_with(dataset: Digest, *, cache: Path) -> AsyncIterator[None]:
    """Let one process at a time fetch this dataset: the others wait, and find it."""
    lock = FileLock(cache / f"{dataset}.lock")
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
        await asyncio.sleep(LOOK_S)
    try:
        yield
    finally:
        lock.release()
