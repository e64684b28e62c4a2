"""A run in memory, with everything that may happen to it in one short call each."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec.structs import replace

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    canonical,
    run_digest,
)
from atoll.host import run as decisions
from atoll.host.due import advance
from atoll.host.effects import Append, Effect, Report, Send
from atoll.host.membership import Member
from atoll.host.open_round import Round
from atoll.ids import Digest, PeerId, RoundId, digest_of
from atoll.net import records, wire

T = TypeVar("T")

A, B, C, D = (PeerId(letter * 32) for letter in "abcd")
BUILT_IN = PeerId("f" * 32)
SYNC = SyncConfig(
    rounds=3,
    inner_steps=2,
    quorum=0.6,
    grace_factor=0.5,
    grace_floor_s=2.0,
    silent_s=10.0,
    reconnect_s=30.0,
)
CONFIG = RunConfig(
    name="scene",
    model=ModelConfig(
        vocab_size=4096, num_layers=1, width=8, num_heads=1, num_kv_heads=1, ffn_width=8
    ),
    data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),)),
    inner=InnerConfig(lr=1e-3, batch_sequences=2),
    sync=SYNC,
)
GENESIS = records.Genesis(
    run=run_digest(CONFIG),
    config=canonical(CONFIG).decode(),
    dataset=digest_of(b"dataset"),
    authority=digest_of(b"authority"),
    public_key="",
    built_in=BUILT_IN,
    built_in_key="",
    at=0.0,
)
SLICE_BYTES = (7, 8)
NUM_SLICES = len(SLICE_BYTES)


def name(*parts: object) -> Digest:
    return digest_of(repr(parts).encode())


def state(round_id: int, *, of: str = "all") -> Digest:
    return name("state", round_id, of)


def contribution(
    peer: PeerId,
    *,
    round_id: int = 1,
    lease_ids: Iterable[int] = (1,),
    loss: float = 2.0,
    num_slices: int = NUM_SLICES,
) -> wire.Contribution:
    return wire.Contribution(
        round=RoundId(round_id),
        leases=tuple(lease_ids),
        num_steps=2,
        mean_loss=loss,
        digests=tuple(name("slice", peer, round_id, k) for k in range(num_slices)),
    )


def delivered(
    peer: PeerId, k: int, *, round_id: int = 1, norm: float = 1.0, digest: Digest | None = None
) -> wire.Delivered:
    return wire.Delivered(
        round=RoundId(round_id),
        contributor=peer,
        slice=k,
        digest=digest or name("slice", peer, round_id, k),
        squared_norm=norm,
    )


def update(k: int, *, round_id: int = 1, version: int) -> Digest:
    return name("update", round_id, k, version)


def partial(k: int, group: int, *, version: int) -> Digest:
    return name("partial", k, group, version)


def reduced(k: int, *, version: int, round_id: int = 1) -> wire.Reduced:
    return wire.Reduced(
        round=RoundId(round_id),
        roster_version=version,
        slice=k,
        digest=update(k, round_id=round_id, version=version),
    )


def reduced_at(rnd: Round, place: int) -> wire.Reduced:
    """Return what the reducer of a place says when it has formed what it is to form."""
    tree, version = rnd.tree, rnd.roster_version
    group, k = tree.group_and_slice(place)
    parts = tuple(partial(k, child, version=version) for child in rnd.below(group))
    of_root = reduced(k, version=version, round_id=rnd.id)
    if group == tree.root:
        return replace(of_root, parts=parts)
    return replace(of_root, group=group, digest=partial(k, group, version=version), parts=parts)


def held(*, version: int, round_id: int = 1, num_slices: int = NUM_SLICES) -> wire.Held:
    digests = tuple(update(k, round_id=round_id, version=version) for k in range(num_slices))
    return wire.Held(round=RoundId(round_id), roster_version=version, digests=digests)


def hello(
    peer: PeerId,
    *,
    round_id: int = 0,
    state_digest: Digest | None = None,
    trained: tuple = (),
    arriving: wire.Arriving | None = None,
) -> wire.Hello:
    return wire.Hello(
        protocol=wire.PROTOCOL,
        run=GENESIS.run,
        name=peer[:1],
        trains=peer != BUILT_IN,
        listen_host="",
        listen_port=1,
        codecs=("fp32", "int8"),
        round=RoundId(round_id),
        state=state_digest or state(round_id),
        trained=trained,
        arriving=arriving,
    )


@dataclass
class Scene:
    """A run, its journal, and what its last event led to. Each call lets one thing happen."""

    journal: list[records.Record] = field(default_factory=lambda: [GENESIS])
    now: float = 0.0
    effects: list[Effect] = field(default_factory=list)
    slice_bytes: tuple[tuple[int, ...], ...] = (SLICE_BYTES,)

    def __post_init__(self) -> None:
        self.run = decisions.replay(self.journal, slice_bytes=self.slice_bytes, now=self.now)

    @classmethod
    def of(
        cls, sync: SyncConfig, *, slice_bytes: tuple[tuple[int, ...], ...] = (SLICE_BYTES,)
    ) -> "Scene":
        """Return a new run that is synchronised in this way, with these updates."""
        config = replace(CONFIG, sync=sync, model=replace(CONFIG.model, num_layers=sync.fragments))
        genesis = replace(GENESIS, config=canonical(config).decode())
        return cls([genesis], slice_bytes=slice_bytes)

    def restart(self) -> "Scene":
        """Return the scene after the host process ended and another took over."""
        return Scene(self.journal, self.now, slice_bytes=self.slice_bytes)

    @property
    def num_slices(self) -> int:
        """Of the next round."""
        return len(self.slice_bytes[self.run.fragment_of(self.run.next_round)])

    def note(self, effects: list[Effect]) -> list[Effect]:
        """Do what is then due, too, as the host does in a moment."""
        self.effects = effects = [*effects, *advance(self.run, now=self.now)]
        for effect in effects:
            if isinstance(effect, Append):
                self.journal += effect.records
        return effects

    def hello(self, peer: PeerId, **says: object) -> list[Effect]:
        member = Member(peer=peer, name=peer[:1], trains=peer != BUILT_IN)
        said = hello(peer, **says)  # type: ignore[arg-type]
        return self.note(decisions.on_hello(self.run, member, said, now=self.now))

    def probed(self, peer: PeerId, *, reachable: bool = True) -> list[Effect]:
        address = wire.Address(peer=peer, host="h", port=1) if reachable else None
        return self.note(decisions.on_probed(self.run, peer, address, now=self.now))

    def says(self, peer: PeerId, message: wire.Message) -> list[Effect]:
        return self.note(decisions.on_message(self.run, peer, message, now=self.now))

    def at_state(self, peer: PeerId, round_id: int = 0, *, of: str = "all") -> list[Effect]:
        at = wire.AtState(round=RoundId(round_id), state=state(round_id, of=of), device="cpu")
        return self.says(peer, at)

    def join(self, *peers: PeerId, reachable: bool = True, round_id: int = 0) -> None:
        """Let these come in and be ready, and the grace time for others pass."""
        for peer in peers:
            self.hello(peer, round_id=round_id)
            self.probed(peer, reachable=reachable)
        for peer in peers:
            self.at_state(peer, round_id)

    def lost(self, peer: PeerId) -> list[Effect]:
        return self.note(decisions.on_lost(self.run, peer, "its connection ended", now=self.now))

    def passes(self, seconds: float) -> list[Effect]:
        """Let time pass; the members that are connected give a sign of life at its end."""
        self.now += seconds
        for member in self.run.membership.connected():
            self.run.membership.hear(member.peer, now=self.now)
        return self.tick()

    def tick(self) -> list[Effect]:
        return self.note(decisions.on_tick(self.run, now=self.now))

    def claims(self, peer: PeerId, *, num_leases: int | None = None) -> None:
        """Let the peer announce a contribution with so many of its leases, or all."""
        ids = [lease.id for lease in self.run.book.held_by(peer)][:num_leases]
        round_id, num_slices = self.run.next_round, self.num_slices
        self.says(peer, contribution(peer, round_id=round_id, lease_ids=ids, num_slices=num_slices))

    def delivers(self, *peers: PeerId, num_leases: int | None = None) -> None:
        """Let these contribute, and all their slices arrive."""
        for peer in peers:
            num_slices = self.num_slices
            self.claims(peer, num_leases=num_leases)
            for k in range(num_slices):
                if (rnd := self.run.round) is not None:
                    place = rnd.tree.place(rnd.group_of(peer), k)
                    self.says(rnd.assignment[place], delivered(peer, k, round_id=rnd.id))

    def reduces(self) -> int:
        """Let the reducers form all sums and updates; return the version of the roster."""
        rnd = self.run.round
        assert rnd is not None
        for group in sorted(rnd.populated):
            for place in rnd.tree.places(group):
                self.says(rnd.assignment[place], reduced_at(rnd, place))
        return rnd.roster_version

    def commits(self, *holders: PeerId) -> None:
        """Let the closed round be reduced, held by these, and so committed."""
        round_id, num_slices, version = self.run.next_round, self.num_slices, self.reduces()
        for peer in holders:
            self.says(peer, held(version=version, round_id=round_id, num_slices=num_slices))
        assert self.run.committed == round_id

    # --- what came of it ------------------------------------------------------------------------

    def sent(self, kind: type[T], *, to: PeerId | None = None) -> list[T]:
        """Return the messages of this kind that the last event sent."""
        sends = [e for e in self.effects if isinstance(e, Send) and to in (None, e.peer)]
        return [send.message for send in sends if isinstance(send.message, kind)]

    def recorded(self, kind: type[T]) -> list[T]:
        """Return all records of this kind."""
        return [record for record in self.journal if isinstance(record, kind)]

    def reported(self, kind: type[T]) -> list[T]:
        reports = [e.event for e in self.effects if isinstance(e, Report)]
        return [event for event in reports if isinstance(event, kind)]
