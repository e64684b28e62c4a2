"""Saved states as others read them, beside the process that owns their store and may write to it.

Reading changes nothing: what a crash has left behind stays, and what is damaged is reported.
"""

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from atoll.durable import is_refusal
from atoll.errors import BadBlobError, DamagedError, RunError
from atoll.ids import Digest, RoundId
from atoll.outer.checkpoint import MANIFEST_FILE, STATE_FILE
from atoll.outer.manifest import StateManifest, manifest_of, parse_manifest
from atoll.outer.state import PeerState


def saved_rounds(directory: Path) -> tuple[RoundId, ...]:
    """Return the rounds whose states are in the directory of a store, oldest first."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return tuple(sorted(RoundId(int(name)) for name in names if name.isdecimal()))


def read_saved(directory: Path, round: RoundId, *, run: Digest) -> tuple[PeerState, Digest]:
    """Return a state of this store and its digest, for which every chunk was hashed.

    Raises:
        DamagedError: it is not what was saved.
        RunError: it belongs to another run.
    """
    folder = directory / f"{round:06}"
    manifest, params_N, momentum_N = _read(folder)
    if manifest.run != run:
        raise RunError(
            f"{folder} belongs to another run: {manifest.run}",
            hint="use the directory of this run",
        )
    for values_N in (params_N, momentum_N):
        if values_N.dtype != np.dtype("<f4") or values_N.shape != (manifest.num_values,):
            raise _damaged(folder / STATE_FILE, "its tensors have another size or kind")
    state = PeerState(round, params_N, momentum_N)
    found = manifest_of(state, run=run)
    for index, (chunk, expected) in enumerate(zip(found.chunks, manifest.chunks, strict=True)):
        if chunk != expected:
            raise _damaged(folder / STATE_FILE, f"chunk {index} is not what was saved")
    if found != manifest:
        raise _damaged(folder / MANIFEST_FILE, f"it is the manifest of round {manifest.round}")
    return state, manifest.digest


def _read(folder: Path) -> tuple[StateManifest, NDArray[np.float32], NDArray[np.float32]]:
    path = folder / MANIFEST_FILE
    try:
        manifest = parse_manifest(path.read_bytes())
        path = folder / STATE_FILE
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("manifest") != manifest.digest:
                raise _damaged(path, f"it does not belong to {MANIFEST_FILE}")
            params_N, momentum_N = file.get_tensor("params"), file.get_tensor("momentum")
    except (OSError, SafetensorError, BadBlobError) as error:
        if is_refusal(error):
            raise
        raise _damaged(path, str(error)) from error
    return (
        manifest,
        cast(NDArray[np.float32], params_N),
        cast(NDArray[np.float32], momentum_N),
    )


def _damaged(path: Path, problem: str) -> DamagedError:
    return DamagedError(
        f"{path} is damaged: {problem}",
        hint=f"delete the folder {path.parent}: the state will be fetched from other members",
    )
