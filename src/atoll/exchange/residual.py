"""Error feedback: what the encodings of our contributions have dropped, for later ones to bring.

    kept      what all committed contributions together have left out
    pending   what it will be if the contribution in flight is committed

A contribution that is not committed changes nothing: its work is carried in the local weights, so
the residual must be what it was before. On disk, `residual/000012-<digest>` is the pending part of
round 12 for the contribution of that digest, written before the host can commit it.

Shapes: N all values of the model.
"""

from pathlib import Path
from threading import Lock

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from atoll.durable import TEMPORARY, disk_errors, open_directory, publish, write_synced
from atoll.errors import DamagedError
from atoll.ids import INITIAL, Digest, RoundId
from atoll.model.layout import Layout

DIGEST_BYTES = 32
NAME_DIGITS = 16  # of the contribution's digest


class Residual:
    """The residual of one peer; for codecs that have none there is no object."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.kept_N: NDArray[np.float32] = np.zeros(layout.num_values, np.float32)
        self.pending_N: NDArray[np.float32] = np.zeros_like(self.kept_N)
        self._directory = directory
        self._layout = layout
        # The contribution to a round that its fragment's part of `pending_N` belongs to.
        self._pending: dict[RoundId, Digest] = {}
        self._settled = INITIAL
        self._lock = Lock()  # saving may still be under way when the round is over
        open_directory(directory)

    def load(self, round_id: RoundId) -> None:
        """Make it what it was after the commit of this round, as far as it is on disk.

        Raises:
            DamagedError: a file is not what was written.
        """
        # What was not committed is removed with the round that it was for, so the newest counts.
        self._settled = round_id
        for path in self._files():
            if _round_of(path) <= round_id:
                self._read_(path)

    def save(self, round_id: RoundId, contribution: Digest) -> None:
        """Keep the pending part of a round, for the contribution that is encoded.

        Raises:
            RunError: the disk is full.
        """
        with self._lock:
            if round_id <= self._settled:
                return
            part = self._part(self.pending_N, round_id).data.cast("B")
            path = self._path(round_id, contribution)
            beside = path.with_name(f"{TEMPORARY}{path.name}")
            with disk_errors(path):
                write_synced(beside, [blake3(part).digest(), part])
                publish(beside, path)
            self._pending[round_id] = contribution

    def settle(self, round_id: RoundId, contribution: Digest | None) -> None:
        """Take over what was pending of the contribution that a round has committed; None: none.

        Raises:
            DamagedError: its file is not what was written.
        """
        with self._lock:
            self._settled = round_id
            committed = self._path(round_id, contribution) if contribution else None
            pending = self._pending.pop(round_id, None)
            if committed is not None and contribution == pending:
                self._part(self.kept_N, round_id)[:] = self._part(self.pending_N, round_id)
            elif committed is not None and committed.exists():
                self._read_(committed)  # encoded before we encoded anew, or were started anew
            for path in self._files():
                superseded = committed is not None and self._is_same_part(path, round_id)
                if path != committed and (_round_of(path) == round_id or superseded):
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everything: our state is another one."""
        with self._lock:
            self.kept_N[:] = 0
            self._pending.clear()
            for path in self._files():
                path.unlink(missing_ok=True)

    def _is_same_part(self, path: Path, round_id: RoundId) -> bool:
        """Return whether the file is of an earlier round of the same fragment."""
        earlier = _round_of(path)
        fragment = self._layout.fragment_of(round_id)
        return earlier < round_id and self._layout.fragment_of(earlier) == fragment

    def _read_(self, path: Path) -> None:
        content = path.read_bytes()
        digest, values = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        part = self._part(self.kept_N, _round_of(path))
        if len(values) != part.nbytes or blake3(values).digest() != digest:
            hint = f"delete {path}: what earlier rounds left out is then lost, and nothing else"
            raise DamagedError(f"{path} is damaged", hint=hint)
        part[:] = np.frombuffer(values, "<f4")

    def _part(self, values_N: NDArray[np.float32], round_id: RoundId) -> NDArray[np.float32]:
        fragment = self._layout.fragment_of(round_id)
        return values_N[fragment.start : fragment.stop]

    def _files(self) -> list[Path]:
        # Others may put something of theirs here, as file managers do.
        return sorted(path for path in self._directory.iterdir() if path.name[:1].isdecimal())

    def _path(self, round_id: RoundId, contribution: Digest) -> Path:
        return self._directory / f"{round_id:06}-{contribution[:NAME_DIGITS]}"


def _round_of(path: Path) -> RoundId:
    return RoundId(int(path.name.partition("-")[0]))
