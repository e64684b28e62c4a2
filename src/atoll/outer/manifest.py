"""What a committed state is named by: the digests of its chunks, and their manifest's own digest.

    momentum | params  --cut into 4 MiB--> chunks --> digests --> manifest --> digest of the state

So the states of two peers are compared by one digest, and a joiner can take each chunk from whoever
has it.

Shapes: N values.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from atoll.errors import BadBlobError
from atoll.ids import Buffer, Digest, RoundId, digest_of
from atoll.outer.state import PeerState
from atoll.units import MIB

CHUNK_BYTES = 4 * MIB


class StateManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    run: Digest
    round: Annotated[RoundId, Meta(ge=0)]
    num_values: Annotated[int, Meta(gt=0, lt=2**48)]
    chunk_bytes: Annotated[int, Meta(ge=CHUNK_BYTES, le=CHUNK_BYTES)]
    chunks: tuple[Digest, ...]

    def encoded(self) -> bytes:
        """Return the canonical JSON: what travels, lies on the disk, and is hashed."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def digest(self) -> Digest:
        return digest_of(self.encoded())

    @property
    def state_bytes(self) -> int:
        return 8 * self.num_values

    def bounds(self, index: int) -> tuple[int, int]:
        """Return where a chunk starts and stops, in the bytes of momentum and params."""
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.state_bytes)


_decoder = msgspec.json.Decoder(StateManifest)


def manifest_of(state: PeerState, *, run: Digest) -> StateManifest:
    """Return the manifest of a state, hashed on all cores."""
    starts = range(0, 8 * state.num_values, CHUNK_BYTES)
    return StateManifest(
        run=run,
        round=state.round,
        num_values=state.num_values,
        chunk_bytes=CHUNK_BYTES,
        chunks=_digests(state, starts),
    )


def _digests(state: PeerState, starts: Sequence[int]) -> tuple[Digest, ...]:
    def digest(start: int) -> Digest:
        return digest_of(*bytes_of(state, start, start + CHUNK_BYTES))

    if len(starts) == 1:  # threads would take longer than the hash
        return (digest(starts[0]),)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(digest, starts))


def bytes_of(state: PeerState, start: int, stop: int) -> tuple[memoryview, memoryview]:
    """Return views of the bytes `start` to `stop - 1` of momentum and params in a row."""
    momentum = state.momentum_N.data.cast("B")
    params = state.params_N.data.cast("B")
    border = len(momentum)
    return momentum[start:stop], params[max(start - border, 0) : max(stop - border, 0)]


def parse_manifest(raw: Buffer) -> StateManifest:
    """Parse bytes from another machine, or from a disk.

    Raises:
        BadBlobError: they are not exactly the canonical form of a manifest.
    """
    try:
        manifest = _decoder.decode(raw)
    except (ValueError, RecursionError) as error:  # bad types or UTF-8, and deep nesting
        raise BadBlobError(f"not the manifest of a state: {error}") from error
    num_chunks = -(-manifest.state_bytes // manifest.chunk_bytes)
    if len(manifest.chunks) != num_chunks or manifest.encoded() != raw:
        raise BadBlobError(f"not the manifest of a state of {manifest.num_values} values")
    return manifest
