"""What messages are made of: numbers within their bounds, and structs that are no message."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from atoll.ids import Digest, LeaseId, PeerId, RoundId

MAX_BLOB_BYTES: Final = 2**31

U16 = Annotated[int, Meta(ge=0, lt=2**16)]
U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=1000)]
BlobBytes = Annotated[int, Meta(ge=0, le=MAX_BLOB_BYTES)]


class Address(Struct, frozen=True, kw_only=True):
    """Where a member that others can reach listens."""

    peer: PeerId
    host: Text
    port: U16


class Arriving(Struct, frozen=True, kw_only=True):
    """A state of which a part is on the member's disk already."""

    round: Annotated[RoundId, Meta(ge=0)]
    state: Digest
    num_bytes: U63  # of it that are there; all, while the rest is on its way


class Counted(Struct, frozen=True, kw_only=True):
    """What a commit has of the member that is told of it."""

    leases: tuple[LeaseId, ...]
    contribution: Digest  # of the digests of its encoded slices, in order
    num_tokens: U63 = 0  # of its leases
    round_tokens: U63 = 0  # of all contributors
    total_tokens: U63 = 0  # of this member, in the whole run so far


class HostAddress(Struct, frozen=True, kw_only=True):
    """Where a host listens, or will listen once it leads."""

    host: Text
    port: U16


class Reduction(Struct, frozen=True, kw_only=True):
    """Who reduces the slices `start` to `stop - 1` of a round."""

    reducer: Address
    start: U32
    stop: U32


class Run(Struct, frozen=True, kw_only=True):
    """The slices `start` to `stop - 1` of a round."""

    start: U32
    stop: U32


class ReduceInput(Struct, frozen=True, kw_only=True):
    peer: PeerId
    share: float
    digest: Digest


class Part(Struct, frozen=True, kw_only=True):
    """Who has the partial sum of a group; None: nobody yet."""

    group: U32
    reducer: Address | None


class RoundTrip(Struct, frozen=True, kw_only=True):
    """How long a packet to a member and back takes, as whoever tells of it has measured."""

    peer: PeerId
    seconds: float


class NamedSlice(Struct, frozen=True, kw_only=True):
    slice: U32
    digest: Digest
