"""Every message that crosses the network, and the only code that knows its bytes.

A message is a msgpack map with its tag under "t". Blobs do not travel inside: a message with
`num_bytes` announces so many raw bytes that follow it, so that no decoder ever holds a slice.

    enrolment   GetAuthority -> Authority, Enrol -> Enrolled      (no certificate yet)
    control     Hello -> Leader, Welcome, then both as they like  (peer <-> host)
    slices      Bring -> Holding, then Slice + bytes, ... -> Taken, ...        (member -> reducer)
                FetchUpdates -> Update + bytes, ..., and Missing if the time is over
    blobs       Fetch -> Blob + bytes | Missing                   (member -> member)
                FetchInner -> Inner | Missing
    anywhere    Refused: the other side will not, says why, and closes

To change one, add a field with a default. Renaming, retyping or reusing a tag takes a new PROTOCOL.
`tests/golden/wire` holds the bytes of each message.
"""

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct, field, msgpack

from atoll.errors import ProtocolError
from atoll.ids import Digest, Lease, LeaseId, PeerId, RoundId
from atoll.net.parts import (
    MAX_BLOB_BYTES as MAX_BLOB_BYTES,
    U16 as U16,
    U32 as U32,
    U63 as U63,
    Address as Address,
    Arriving as Arriving,
    BlobBytes as BlobBytes,
    Counted as Counted,
    HostAddress as HostAddress,
    NamedSlice as NamedSlice,
    Part as Part,
    ReduceInput as ReduceInput,
    Reduction as Reduction,
    RoundTrip as RoundTrip,
    Run as Run,
    Text as Text,
)
from atoll.traffic import Traffic
from atoll.units import KIB, MIB

PROTOCOL: Final = 5
MAX_MESSAGE_BYTES: Final = 4 * MIB  # the inputs of a slice from thousands fit
MAX_ROUND_TRIPS: Final = 16  # that a member tells of at once
MAX_STRANGER_BYTES: Final = 64 * KIB  # from whoever has no certificate of this run


# --- enrolment -----------------------------------------------------------------------------------


class GetAuthority(Struct, frozen=True, kw_only=True, tag_field="t", tag="get_authority"):
    """Newcomer to host, first message: who signs here? The token waits for the answer."""

    protocol: int


class Authority(Struct, frozen=True, kw_only=True, tag_field="t", tag="authority"):
    certificate: bytes  # DER; its digest is in the invite, and it signed the host's own
    now_s: float = 0.0  # since 1970, by the host's clock; for people
    seen_host: Text = ""  # the address that the newcomer comes from


class Enrol(Struct, frozen=True, kw_only=True, tag_field="t", tag="enrol"):
    token: Text
    public_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    name: Text


class Enrolled(Struct, frozen=True, kw_only=True, tag_field="t", tag="enrolled"):
    certificate: bytes  # DER
    run_config: bytes  # canonical JSON
    host: PeerId
    built_in: PeerId


class Refused(Struct, frozen=True, kw_only=True, tag_field="t", tag="refused"):
    """The other side will not go on. `final`: asking again is of no use. `hosts`: who may know."""

    reason: Text
    hint: Text = ""
    final: bool = True
    hosts: tuple[HostAddress, ...] = ()


class Commit(Struct, frozen=True, kw_only=True, tag_field="t", tag="commit"):
    """Host to members: a journal record, with its place in the chain, signed by the host.

    Of a round's commit, the roster is left out: it is as long as the run is large. The digest that
    stands for it is signed; `counted` is the member's own line of it, None if it has none.
    """

    seq: U63
    previous: Digest
    body: bytes  # canonical JSON; see net/records.py
    hash: Digest
    signature: bytes
    counted: Counted | None = None


# --- control: peer to host -----------------------------------------------------------------------


class Hello(Struct, frozen=True, kw_only=True, tag_field="t", tag="hello"):
    """The first message on a control connection.

    `round` and `state` say which committed state the peer holds (0 and the initial one: none yet);
    `trained` names the leases whose work is in its local weights and was not committed yet.
    `arriving` is a state that it was fetching when it was stopped, or still is. `instance` is by
    chance, and another one for each process: who comes back after a cut has the same.
    """

    protocol: int
    run: Digest
    name: Text
    trains: bool
    listen_host: Text  # empty: the address that the host sees
    listen_port: U16  # 0: it listens nowhere
    codecs: tuple[str, ...]
    round: RoundId
    state: Digest
    trained: tuple[LeaseId, ...] = ()
    led: Commit | None = None  # the record of the newest leader that the peer has followed
    rests: bool = False  # as `Resting` says
    place: Annotated[str, Meta(max_length=60)] = ""  # where its owner says that it is
    arriving: Arriving | None = None
    instance: Text = ""


class AtState(Struct, frozen=True, kw_only=True, tag_field="t", tag="at_state"):
    """The peer is ready on its device: it holds the state of `round`, which has this digest.

    `traffic` is what it has sent and received since it said so last; the rates are those of its
    line, as measured by what it moved, and `samples_per_s` is that of its inner steps; `peak_flops`
    is what its devices do at most, per second, in products such as it trains with; 0: unknown.
    `round_trips` are those that it has measured, and not told of on this connection.
    """

    round: RoundId
    state: Digest
    device: Text
    traffic: Traffic = field(default_factory=Traffic)
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0
    samples_per_s: float = 0.0
    round_trips: Annotated[tuple[RoundTrip, ...], Meta(max_length=MAX_ROUND_TRIPS)] = ()
    peak_flops: float = 0.0


class Contribution(Struct, frozen=True, kw_only=True, tag_field="t", tag="contribution"):
    """What a peer offers to a round; `digests` names its encoded slices, in order."""

    round: RoundId
    leases: tuple[LeaseId, ...]
    num_steps: U32
    mean_loss: float
    digests: tuple[Digest, ...]


class Delivered(Struct, frozen=True, kw_only=True, tag_field="t", tag="delivered"):
    """Reducer to host: this slice of that contributor is here, whole and decodable."""

    round: RoundId
    contributor: PeerId
    slice: U32
    digest: Digest
    squared_norm: float


class Reduced(Struct, frozen=True, kw_only=True, tag_field="t", tag="reduced"):
    """Reducer to host: the update of this slice, for this roster, is on disk here.

    Or the partial sum of a `group`, which is in memory. `parts` names the partial sums that it is
    made of, in the order of their groups.
    """

    round: RoundId
    roster_version: U32
    slice: U32
    digest: Digest
    group: U32 | None = None
    parts: tuple[Digest, ...] = ()


class Held(Struct, frozen=True, kw_only=True, tag_field="t", tag="held"):
    """Member to host: the updates of all slices, for this roster, are on disk here."""

    round: RoundId
    roster_version: U32
    digests: tuple[Digest, ...]


class Fetched(Struct, frozen=True, kw_only=True, tag_field="t", tag="fetched"):
    """Member to host: I have the updates of the slices from `start` up to `stop`, not all yet."""

    round: RoundId
    roster_version: U32
    start: U32
    stop: U32


class Unreachable(Struct, frozen=True, kw_only=True, tag_field="t", tag="unreachable"):
    """Member to host: I cannot reach this reducer, or what it serves is not what it should be."""

    round: RoundId
    reducer: PeerId


class Heartbeat(Struct, frozen=True, kw_only=True, tag_field="t", tag="heartbeat"):
    """Both ways: I am alive. From a peer, with how its training goes."""

    round: RoundId = RoundId(0)
    step: U32 = 0
    loss: float = 0.0
    tokens_per_s: float = 0.0


class Resting(Struct, frozen=True, kw_only=True, tag_field="t", tag="resting"):
    """Peer to host: wait for me in no round until I say otherwise; my leases and work stay mine."""

    rests: bool


class Evaluated(Struct, frozen=True, kw_only=True, tag_field="t", tag="evaluated"):
    """Peer to host: how good that state is; `loss` None: I cannot say."""

    round: RoundId
    loss: float | None = None  # nats per token, on validation samples
    text: Text = ""  # what the model goes on to write from the prompt of the config, and that


class Leaving(Struct, frozen=True, kw_only=True, tag_field="t", tag="leaving"):
    """Peer to host: I go, for good or for now; my leases are free.

    `traffic` is what it has sent and received since its last `AtState`.
    """

    reason: Text
    traffic: Traffic = field(default_factory=Traffic)


# --- control: host to peer -----------------------------------------------------------------------


class Leader(Struct, frozen=True, kw_only=True, tag_field="t", tag="leader"):
    """Host to members, before anything else: I lead; and, whenever this changes, who stands by.

    A member that has followed a leader of a higher epoch does not follow this one.
    """

    led: Commit  # the record of this host's lead
    hosts: tuple[HostAddress, ...]  # this one, and all that stand by


class Welcome(Struct, frozen=True, kw_only=True, tag_field="t", tag="welcome"):
    """The host's answer to Hello, followed by the commits after `base_round`.

    `base_round` is the peer's own round, or, if it is too far behind or its state is not the agreed
    one, an agreed round whose state (`base_state`) it must fetch first: the one that is `arriving`,
    if the rest of it and the updates since are less than a newer one. `held` are the leases that
    it holds after the commit of that round: those commits settle some of them.
    """

    committed: RoundId
    base_round: RoundId
    base_state: Digest
    dataset: Digest
    held: tuple[Lease, ...]
    reset: bool  # drop the local work: some of its leases went back to the pool
    sources: tuple[Address, ...]


class Plan(Struct, frozen=True, kw_only=True, tag_field="t", tag="plan"):
    """A round to contribute to. A later `version` replaces an earlier one of the same round.

    `reductions` are those of the member's own region; of `also` it takes in slices from others.

    `leases` are all that the peer holds now; those not trained on yet are its work. Of them the
    contribution waits for `num_samples`, or a few more, since it has whole leases.
    The host would like to know the round trips to whom it is to `measure`.
    """

    round: RoundId
    version: U32
    fragment: U32
    first_step: U63
    codec: str
    update_codec: str
    reductions: tuple[Reduction, ...]
    leases: tuple[Lease, ...]
    sources: tuple[Address, ...]
    num_samples: U63 = 0
    also: tuple[Run, ...] = ()
    measure: tuple[Address, ...] = ()


class Closed(Struct, frozen=True, kw_only=True, tag_field="t", tag="closed"):
    """Host to members: fetch the updates of this roster from the plan's reducers, as they form.

    Before the round is closed it is the expected one; a later version replaces it. Who is in it,
    only reducers need to know.
    """

    round: RoundId
    roster_version: U32


class Reduce(Struct, frozen=True, kw_only=True, tag_field="t", tag="reduce"):
    """Host to a reducer: form the update of this slice from exactly these, in this order.

    That is, from the contributions that it takes in, or from the partial sums of other groups. With
    a `group` it is to form that one's partial sum, and to have the update from `parent` (None:
    nobody can give it yet), for those who turn to it.
    """

    round: RoundId
    roster_version: U32
    slice: U32
    inputs: tuple[ReduceInput, ...]
    parts: tuple[Part, ...] = ()
    group: U32 | None = None
    parent: Address | None = None


class Resync(Struct, frozen=True, kw_only=True, tag_field="t", tag="resync"):
    """Host to a peer: your state is not the agreed one; fetch that before you contribute."""

    round: RoundId
    state: Digest


class Evaluate(Struct, frozen=True, kw_only=True, tag_field="t", tag="evaluate"):
    """Host to a peer that trains: find out how good this committed state is, when you can."""

    round: RoundId
    state: Digest


class Stop(Struct, frozen=True, kw_only=True, tag_field="t", tag="stop"):
    """Host to peers: the run is over (`complete`), or the host goes away on purpose."""

    reason: Text
    complete: bool


# --- slices and blobs ----------------------------------------------------------------------------


class Bring(Struct, frozen=True, kw_only=True, tag_field="t", tag="bring"):
    """Contributor to reducer: I bring slices of this round; what do you have of mine?"""

    round: RoundId


class Holding(Struct, frozen=True, kw_only=True, tag_field="t", tag="holding"):
    """Reducer to contributor: these slices of yours are here already."""

    slices: tuple[NamedSlice, ...]


class Slice(Struct, frozen=True, kw_only=True, tag_field="t", tag="slice"):
    """Contributor to reducer: a slice, whose bytes follow. It does not wait for the answer."""

    round: RoundId
    slice: U32
    digest: Digest
    num_bytes: BlobBytes


class Taken(Struct, frozen=True, kw_only=True, tag_field="t", tag="taken"):
    """Reducer to contributor: this slice is here, and sound."""

    slice: U32


class FetchUpdates(Struct, frozen=True, kw_only=True, tag_field="t", tag="fetch_updates"):
    """Member to reducer: these updates, each as soon as it is there; wait so long at most.

    With a `group` it is that one's partial sums instead.
    """

    round: RoundId
    roster_version: U32
    slices: tuple[U32, ...]
    seconds: Annotated[float, Meta(ge=0, le=60)]
    group: U32 | None = None


class Update(Struct, frozen=True, kw_only=True, tag_field="t", tag="update"):
    """Reducer to member: the update of this slice, whose bytes follow."""

    slice: U32
    digest: Digest
    num_bytes: BlobBytes


class Fetch(Struct, frozen=True, kw_only=True, tag_field="t", tag="fetch"):
    digest: Digest


class Blob(Struct, frozen=True, kw_only=True, tag_field="t", tag="blob"):
    digest: Digest
    num_bytes: BlobBytes


class FetchInner(Struct, frozen=True, kw_only=True, tag_field="t", tag="fetch_inner"):
    """Joiner to a member that trains: how are the moments of your inner optimizer to be had?"""


class Inner(Struct, frozen=True, kw_only=True, tag_field="t", tag="inner"):
    """The newest that were saved: a file, in chunks to be fetched as blobs; see `train/moments`."""

    num_bytes: U63
    chunks: tuple[Digest, ...]


class Missing(Struct, frozen=True, kw_only=True, tag_field="t", tag="missing"):
    """It is not here, or not yet; or (`busy`) it is kept for the joiners who are served already."""

    busy: bool = False


Message: TypeAlias = (
    GetAuthority
    | Authority
    | Enrol
    | Enrolled
    | Refused
    | Hello
    | AtState
    | Contribution
    | Delivered
    | Reduced
    | Held
    | Fetched
    | Unreachable
    | Heartbeat
    | Resting
    | Evaluated
    | Leaving
    | Leader
    | Welcome
    | Plan
    | Closed
    | Reduce
    | Commit
    | Resync
    | Evaluate
    | Stop
    | Bring
    | Holding
    | Slice
    | Taken
    | FetchUpdates
    | Update
    | Fetch
    | Blob
    | FetchInner
    | Inner
    | Missing
)

_decoder: msgpack.Decoder[Message] = msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return msgpack.encode(message)


def decode(
    frame: bytes | bytearray | memoryview, *, limit_bytes: int = MAX_MESSAGE_BYTES
) -> Message:
    """Parse bytes from another machine, which may be anything at all.

    Raises:
        ProtocolError: they are not exactly one message of this protocol.
    """
    if len(frame) > limit_bytes:
        raise ProtocolError(f"{len(frame)} bytes, where a message has {limit_bytes} at most")
    try:
        return _decoder.decode(frame)
    except (ValueError, RecursionError) as error:  # bad types or UTF-8, and deep nesting
        raise ProtocolError(f"not a message of protocol {PROTOCOL}: {error}") from error
