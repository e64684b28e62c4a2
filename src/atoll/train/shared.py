"""Two vectors of parameters that the agent and its trainer both see.

    one file, mapped by both:   | global_N: fp32 x N | padding | snapshot_N: fp32 x N |

The agent writes `global_N`: the agreed weights. The trainer writes its local weights to
`snapshot_N` when it is asked to, and the agent the weights that the work started from, before it
asks for a merge that carries work which was not committed. Who may write to which part follows from
the messages of `channel`; there is no lock.

The file lies in memory (/dev/shm) where that exists and has the room, else in the peer's directory.
Where the trainer is in the agent's own process, there is nothing to share, and no file.
"""

import errno
import os
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atoll.errors import RunError
from atoll.ids import digest_of
from atoll.units import MIB, format_bytes

ALIGNMENT_BYTES: Final = 4096
MEMORY_FILES: Final = Path("/dev/shm")


def vectors_path(directory: Path, num_values: int) -> Path:
    """Return where the vectors of the peer that lives in `directory` belong.

    It is the same path each time, so that a peer that was killed leaves nothing behind for good.
    """
    owner = digest_of(str(directory.resolve()).encode())[:16]
    in_memory = MEMORY_FILES / f"atoll-{owner}.vectors"
    if MEMORY_FILES.is_dir() and _has_room(in_memory, _file_bytes(num_values)):
        return in_memory
    return directory / "trainer.vectors"


class SharedVectors:
    """`global_N` and `snapshot_N`; whoever keeps a view of them keeps the memory mapped."""

    def __init__(self, memory: NDArray[np.uint8], num_values: int, *, path: Path | None) -> None:
        """`memory` is the file of that path, mapped, or all that there is."""
        self._path = path
        self.num_values = num_values
        second = _second_starts_at(num_values)
        self.global_N: NDArray[np.float32] = memory[: 4 * num_values].view(np.float32)
        self.snapshot_N: NDArray[np.float32] = memory[second:].view(np.float32)

    @property
    def path(self) -> Path:
        """Where another process finds them."""
        assert self._path is not None, "these are private to one process"
        return self._path

    @classmethod
    def for_peer(cls, directory: Path, num_values: int) -> "SharedVectors":
        """Make those of the peer that lives in `directory`; errors are those of `create`."""
        return cls.create(vectors_path(directory, num_values), num_values)

    @classmethod
    def private(cls, _: Path, num_values: int) -> "SharedVectors":
        """Return some that only this process sees: its trainer is in it, whatever the directory."""
        return cls(np.zeros(_file_bytes(num_values), np.uint8), num_values, path=None)

    @classmethod
    def create(cls, path: Path, num_values: int) -> "SharedVectors":
        """Make the file, all zeros; one that is there already is replaced.

        Raises:
            RunError: there is not enough room, or the file cannot be made.
        """
        num_bytes = _file_bytes(num_values)
        try:
            if not _has_room(path, num_bytes):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            path.unlink(missing_ok=True)  # not truncated: an old trainer may still have it mapped
            _write_zeros(path, num_bytes)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise RunError(
                f"no room for the shared parameters, {format_bytes(num_bytes)}: {path}: "
                f"{error.strerror}",
                hint="free some space there, or choose a smaller model",
            ) from error
        return cls(_mapped(path), num_values, path=path)

    @classmethod
    def open(cls, path: Path, num_values: int) -> "SharedVectors":
        """Map the file that the other process made.

        Raises:
            RunError: it is not there, or has another size.
        """
        expected = _file_bytes(num_values)
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise RunError(
                f"{path} has {found} bytes, where {num_values} parameters take {expected}"
            )
        return cls(_mapped(path), num_values, path=path)

    def close(self) -> None:
        """Let go of the memory; it is unmapped with the last view that somebody still has."""
        del self.global_N, self.snapshot_N

    def unlink(self) -> None:
        """Remove the file, if there is one. Where it is mapped, it stays usable.

        Windows keeps a file that is mapped: the next start of the peer replaces it.
        """
        if self._path is not None:
            with suppress(PermissionError):
                self._path.unlink(missing_ok=True)


def _mapped(path: Path) -> NDArray[np.uint8]:
    return np.memmap(path, dtype=np.uint8, mode="r+").view(np.ndarray)


def _second_starts_at(num_values: int) -> int:
    return -(-4 * num_values // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _file_bytes(num_values: int) -> int:
    return _second_starts_at(num_values) + 4 * num_values


def _has_room(path: Path, num_bytes: int) -> bool:
    to_be_replaced = path.stat().st_size if path.exists() else 0
    return shutil.disk_usage(path.parent).free + to_be_replaced >= num_bytes


def _write_zeros(path: Path, num_bytes: int) -> None:
    # Really written, not only sized: in a sparse file a full disk shows as SIGBUS, much later.
    zeros = bytes(MIB)
    with open(path, "xb", opener=partial(os.open, mode=0o600)) as file:
        for start in range(0, num_bytes, MIB):
            file.write(zeros[: num_bytes - start])
