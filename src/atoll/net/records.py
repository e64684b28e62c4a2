"""The records of a run's journal and the chain that they form: the host writes, peers read.

    record --canonical JSON--> body --brief--> what members are told

    hash = BLAKE3(previous hash | seq | brief), signed by the host

So a member that is told of a commit can check that the host signed it, at that place in the chain.
The brief form of a commit has the digest of its roster instead of the roster, which is as long as
the run is large; all other records are brief.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from atoll.errors import ProtocolError
from atoll.ids import Digest, Lease, LeaseId, PeerId, RoundId, digest_of
from atoll.net import wire
from atoll.net.identity import verify
from atoll.traffic import Traffic

NO_HASH = Digest("0" * 64)  # what the first record has as its previous


class Genesis(Struct, frozen=True, kw_only=True, tag_field="kind", tag="genesis"):
    """The first record: what the run is, and who signs the others."""

    run: Digest
    config: str  # canonical JSON
    dataset: Digest
    authority: Digest
    public_key: str  # hex; the host signs each record with its private part
    built_in: PeerId
    built_in_key: str  # hex
    at: float


class Led(Struct, frozen=True, kw_only=True, tag_field="kind", tag="led"):
    """A host became the leader: what follows, up to the next such record, it has decided."""

    epoch: Annotated[int, Meta(ge=1, le=2**63 - 1)]  # 1, 2, 3, ...
    address: str  # host:port, as members know it
    at: float


class InviteMade(Struct, frozen=True, kw_only=True, tag_field="kind", tag="invite_made"):
    token: Digest
    uses: int
    expires_at: float  # by the host's wall clock


class Admitted(Struct, frozen=True, kw_only=True, tag_field="kind", tag="admitted"):
    peer: PeerId
    public_key: str  # hex
    name: str
    token: Digest


class Planned(Struct, frozen=True, kw_only=True, tag_field="kind", tag="planned"):
    """A round is open, and waits for these contributors."""

    round: RoundId
    peers: tuple[PeerId, ...]


class Leased(Struct, frozen=True, kw_only=True, tag_field="kind", tag="leased"):
    peer: PeerId
    leases: tuple[Lease, ...]


class Released(Struct, frozen=True, kw_only=True, tag_field="kind", tag="released"):
    peer: PeerId
    leases: tuple[LeaseId, ...]
    reason: str


class RosterEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    peer: PeerId
    share: float
    num_tokens: int
    num_steps: int
    mean_loss: float
    leases: tuple[LeaseId, ...]
    contribution: Digest  # of the digests of its encoded slices, in order
    region: int = 0  # in whose partial sums it is, if there is more than one


class SliceUpdate(Struct, frozen=True, kw_only=True):
    digest: Digest
    num_bytes: int


class Committed(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="committed"
):
    """A round is final: these contributors, these updates.

    `partials` are what these are made of, where the roster is divided (exchange/tree.py): the
    digests of the partial sums of each group below the root, one for each slice, or none if the
    roster has nobody below that group. `widths` are those of the tree; older journals do not say.
    """

    round: RoundId
    fragment: int
    codec: str
    update_codec: str
    roster: tuple[RosterEntry, ...]
    updates: tuple[SliceUpdate, ...]
    partials: tuple[tuple[Digest, ...], ...] = ()
    widths: tuple[int, ...] = ()


class Announced(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="announced"
):
    """The brief form of `Committed`."""

    round: RoundId
    fragment: int
    codec: str
    update_codec: str
    num_contributors: int
    roster: Digest  # of the canonical JSON of all its entries
    updates: tuple[SliceUpdate, ...]
    partials: Digest | None = None  # the same, of theirs; None: there are none
    widths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A commit as a member has heard of it: `counted` is what it has of that member."""

    round: RoundId
    update_codec: str
    num_contributors: int
    updates: tuple[SliceUpdate, ...]
    counted: wire.Counted | None


class PeerTraffic(Struct, frozen=True, kw_only=True):
    """What a member has sent and received since the last record that names it."""

    peer: PeerId
    traffic: Traffic


class Agreed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agreed"):
    """The state after `round`, as reported by most members; and the bytes that it took."""

    round: RoundId
    state: Digest
    peers: tuple[PeerId, ...]
    traffic: tuple[PeerTraffic, ...] = ()


class Evaluated(Struct, frozen=True, kw_only=True, tag_field="kind", tag="evaluated"):
    """How good an agreed state is, as this peer says; nobody else has computed it."""

    round: RoundId
    state: Digest
    peer: PeerId
    loss: float  # nats per token, on validation samples
    text: str


class Moved(Struct, frozen=True, kw_only=True, tag_field="kind", tag="moved"):
    """The bytes that members told of after the last agreement, when the host ends."""

    traffic: tuple[PeerTraffic, ...]


class Paused(Struct, frozen=True, kw_only=True, tag_field="kind", tag="paused"):
    """The operator lets no new round begin."""


class Resumed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="resumed"):
    """Rounds begin again."""


class Removed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="removed"):
    """The operator has put this peer out of the run: its key is refused from now on."""

    peer: PeerId
    reason: str


class ReducersChosen(Struct, frozen=True, kw_only=True, tag_field="kind", tag="reducers_chosen"):
    """From the next round on only these average, if any of them can; empty: all that can."""

    peers: tuple[PeerId, ...]


Record: TypeAlias = (
    Genesis
    | Led
    | InviteMade
    | Admitted
    | Planned
    | Leased
    | Released
    | Committed
    | Agreed
    | Evaluated
    | Moved
    | Paused
    | Resumed
    | Removed
    | ReducersChosen
)
_decoder = msgspec.json.Decoder(Record)
_brief_decoder: msgspec.json.Decoder[Record | Announced] = msgspec.json.Decoder(Record | Announced)


def encode(record: Record) -> bytes:
    return msgspec.json.encode(record, order="sorted")


def decode(body: bytes) -> Record:
    record: Record = _decoder.decode(body)
    return record


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in its place in the chain."""

    seq: int
    previous: Digest
    body: bytes
    hash: Digest
    signature: bytes

    @property
    def record(self) -> Record:
        return decode(self.body)

    @property
    def is_led(self) -> bool:
        """Return whether a host became the leader with this record."""
        return b'"kind":"led"' in self.body and isinstance(self.record, Led)

    def to_commit(self) -> wire.Commit:
        """Return the message that announces this record to the members."""
        return wire.Commit(
            seq=self.seq,
            previous=self.previous,
            body=brief(self.body),
            hash=self.hash,
            signature=self.signature,
        )


def contribution_digest(slices: Sequence[Digest]) -> Digest:
    """Return the name of a contribution: the digest of its slices' digests, in order."""
    return digest_of(*[bytes.fromhex(digest) for digest in slices])


def brief(body: bytes) -> bytes:
    """Return what the members are told of a record.

    Raises:
        ValueError: the body is no record.
    """
    if b'"kind":"committed"' not in body or not isinstance(record := decode(body), Committed):
        return body
    announced = Announced(
        round=record.round,
        fragment=record.fragment,
        codec=record.codec,
        update_codec=record.update_codec,
        num_contributors=len(record.roster),
        roster=_name(record.roster),
        updates=record.updates,
        partials=_name(record.partials) if record.partials else None,
        widths=record.widths,
    )
    return msgspec.json.encode(announced, order="sorted")


def _name(part: object) -> Digest:
    return digest_of(msgspec.json.encode(part, order="sorted"))


def entry_hash(*, seq: int, previous: Digest, body: bytes) -> Digest:
    """Return the hash of a record in its place in the chain.

    Raises:
        ValueError: the body is no record, or `previous` is no hash.
    """
    return _brief_hash(seq=seq, previous=previous, brief=brief(body))


def _brief_hash(*, seq: int, previous: Digest, brief: bytes) -> Digest:
    return digest_of(bytes.fromhex(previous), seq.to_bytes(8, "little"), brief)


def committed(message: wire.Commit, *, public_key: bytes) -> Heard:
    """Return the commit that the host announces.

    Raises:
        ProtocolError: the host of this run did not sign it, or it is no commit.
    """
    record = signed(message, public_key=public_key)
    if not isinstance(record, Announced):
        raise ProtocolError(f"a {type(record).__name__} record, where a commit was due")
    return Heard(
        round=record.round,
        update_codec=record.update_codec,
        num_contributors=record.num_contributors,
        updates=record.updates,
        counted=message.counted,
    )


def led(message: wire.Commit, *, public_key: bytes) -> Led:
    """Return the record that made a host the leader.

    Raises:
        ProtocolError: no host of this run signed it, or it is another record.
    """
    record = signed(message, public_key=public_key)
    if not isinstance(record, Led):
        raise ProtocolError(f"a {type(record).__name__} record, where an epoch was due")
    return record


def signed(message: wire.Commit, *, public_key: bytes) -> Record | Announced:
    """Return the journal record in a message, in its brief form.

    Raises:
        ProtocolError: a host of this run did not sign it, at that place in the chain.
    """
    digest = _brief_hash(seq=message.seq, previous=message.previous, brief=message.body)
    if digest != message.hash or not _is_signed(public_key, digest, message.signature):
        raise ProtocolError("a record that the host of this run did not sign")
    try:
        return _brief_decoder.decode(message.body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a journal record: {error}") from error


@lru_cache(maxsize=64)  # a member looks at a record when it hears it, and when it keeps it
def _is_signed(public_key: bytes, digest: Digest, signature: bytes) -> bool:
    return verify(public_key, bytes.fromhex(digest), signature)
