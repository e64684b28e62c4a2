"""What names things in a run: peers, rounds, leases, and blobs by their digest."""

from typing import Annotated, NewType

from blake3 import blake3
from msgspec import Meta, Struct

# The patterns are checked wherever an id is decoded: a digest from the network also names a file.
PeerId = NewType("PeerId", Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")])
"""32 hex digits: the start of the BLAKE3 digest of the peer's public key. A peer *is* its key."""

RoundId = NewType("RoundId", int)
"""1, 2, 3, ...; "state r" is the state after the commit of round r, state 0 the initial one."""

INITIAL = RoundId(0)  # the state before the first round

LeaseId = NewType("LeaseId", int)

Digest = NewType("Digest", Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")])
"""64 hex digits: the BLAKE3 digest of a blob."""


class Lease(Struct, frozen=True, kw_only=True):
    """The samples `start` to `stop - 1` of the run's sample order, for one peer to train on."""

    id: LeaseId
    start: Annotated[int, Meta(ge=0)]
    stop: Annotated[int, Meta(ge=0)]

    @property
    def num_samples(self) -> int:
        return self.stop - self.start


Buffer = bytes | bytearray | memoryview


def digest_of(*parts: Buffer) -> Digest:
    """Return the digest of the parts, one after the other."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return Digest(hasher.hexdigest())


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the id of the peer that owns this raw Ed25519 public key (32 bytes)."""
    return PeerId(blake3(public_key).hexdigest(length=16))
