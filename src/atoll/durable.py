"""Files that are there whole or not at all, whenever the power goes.

write beside --> fsync --> rename --> fsync the directory
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import NamedTuple

from atoll.errors import RunError
from atoll.ids import Buffer
from atoll.system import sync

# What a process is refused now, whatever is in the file.
REFUSED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM}
TEMPORARY = ".tmp-"  # a name that begins like this was left behind by a crash


class Location(NamedTuple):
    """Where the bytes of a blob lie."""

    path: Path
    offset: int
    num_bytes: int


def write_synced(path: Path, parts: Iterable[Buffer]) -> None:
    """Write the parts, one after the other, to a file and on to the disk."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def write_all(file: RawIOBase, content: Buffer) -> None:
    """Write all of this to a file without a buffer: a disk that is just full takes a part of it."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def write_over(path: Path, content: Buffer) -> None:
    """Make this the content of a file, new or in the place of what it holds; nothing is synced."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0) as file:
        write_all(file, content)
        if file.seek(0, os.SEEK_END) > len(content):
            file.truncate(len(content))


def write_whole(path: Path, content: Buffer) -> None:
    """Write a file that is there whole, and on the disk, or as it was before.

    Raises:
        RunError: the disk is full or broken, or the path may not be written to.
    """
    beside = path.with_name(path.name + ".new")
    with disk_errors(path.parent):
        write_synced(beside, [content])
        publish(beside, path)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file or folder, whose content is on the disk, its name."""
    temporary.replace(path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_directory(directory: Path) -> None:
    """Make a directory if needed, and remove what a crash has left in it."""
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"{TEMPORARY}*"):
            remove(leftover)


def is_refusal(error: Exception) -> bool:
    """Return whether a file could not be read for a reason that says nothing of the file.

    It is then not damaged, and nobody should be told to delete it.
    """
    return isinstance(error, OSError) and error.errno in REFUSED


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one that says what the operator can do.

    Raises:
        RunError: the disk is full or broken, or the path may not be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # not of the system: a TimeoutError of ours, for example, is an OSError as well
        raise RunError(
            f"cannot write {path}: {error.strerror}",
            hint="free some space there, or see who may write there, and start again: "
            "what was saved before is intact",
        ) from error
