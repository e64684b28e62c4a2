"""A run of the host's own decisions whose journal and events are seen by a board."""

from dataclasses import dataclass, field

from tests.unit.host.scene import BUILT_IN, Scene, hello, state

from atoll import events
from atoll.config import SyncConfig
from atoll.events import Stamped
from atoll.host import run as decisions
from atoll.host.effects import Append, Effect, Report
from atoll.host.membership import Member
from atoll.ids import PeerId, RoundId
from atoll.net import wire
from atoll.net.records import NO_HASH, Admitted, Entry, encode, entry_hash
from atoll.web.board import Board


def peer_id(number: int) -> PeerId:
    return PeerId(f"{number:032x}")


@dataclass
class Seen(Scene):
    """A scene that is watched: what it appends and reports reaches the board as on a real host."""

    entries: list[Entry] = field(default_factory=list)
    began_at: float = 1000.0  # by the wall clock

    def __post_init__(self) -> None:
        super().__post_init__()
        for record in self.journal:
            self._enter(record)
        self.board = Board(self.entries, run=lambda: self.run, now=lambda: self.now)

    @classmethod
    def new(cls, **changes: object) -> "Seen":
        return cls.of(SyncConfig(**{"rounds": 50, "inner_steps": 2, **changes}))  # type: ignore[arg-type, return-value]

    def _enter(self, record) -> None:
        seq = len(self.entries)
        previous = self.entries[-1].hash if self.entries else NO_HASH
        body = encode(record)
        digest = entry_hash(seq=seq, previous=previous, body=body)
        self.entries.append(Entry(seq, previous, body, digest, b"signature"))

    def admit(self, peer: PeerId, name: str) -> None:
        record = Admitted(peer=peer, public_key="", name=name, token="0" * 64)
        self.journal.append(record)
        self._enter(record)

    def note(self, effects):
        effects = super().note(effects)
        for effect in effects:
            match effect:
                case Append(records=records):
                    for record in records:
                        self._enter(record)
                case Report(event=event):
                    self.report(event)
                case _:
                    pass
        return effects

    def report(self, event: events.Event) -> None:
        self.board.replay([Stamped(at=self.began_at + self.now, event=event)])

    def gather(
        self, num_peers: int, *, start: int = 0, num_able: int | None = None
    ) -> list[PeerId]:
        """Let so many new peers, and the built-in member, come in; others can dial all, or some."""
        peers = [peer_id(number) for number in range(start, start + num_peers)]
        for number, peer in enumerate(peers, start=start):
            self.admit(peer, f"peer-{number}")
        self.board.catch_up()
        self.join(BUILT_IN, *peers[:num_able], round_id=self.run.committed)
        if num_able is not None:
            self.join(*peers[num_able:], reachable=False, round_id=self.run.committed)
        self.passes(3.0)
        return peers

    def crowd(self, num_peers: int) -> list[PeerId]:
        """Let so many come in at once: one after the other costs the host a look at all of them."""
        peers = [peer_id(number) for number in range(num_peers)]
        members = self.run.membership
        for number, peer in enumerate(peers):
            self.admit(peer, f"peer-{number}")
            members.enter(Member(peer=peer, name=f"peer-{number}"), now=self.now)
            members.reach(peer, wire.Address(peer=peer, host="h", port=1))
            members.report(peer, round_id=RoundId(0), state=state(0), device="cpu")
            self.report(
                events.PeerJoined(peer=peer, name=f"peer-{number}", device="cpu", reachable=True)
            )
        self.join(BUILT_IN)
        return peers

    def hello(self, peer: PeerId, **says: object) -> list[Effect]:
        name = self.board.fold.peers[peer].name if peer != BUILT_IN else "built-in"
        member = Member(peer=peer, name=name, trains=peer != BUILT_IN)
        said = hello(peer, **says)  # type: ignore[arg-type]
        return self.note(decisions.on_hello(self.run, member, said, now=self.now))

    def train(self, peer: PeerId, *, step: int = 1, tokens_per_s: float = 100.0) -> None:
        event = events.Training(
            peer=peer, round=self.run.next_round, step=step, loss=5.0, tokens_per_s=tokens_per_s
        )
        self.report(event)

    def commit_round(self, *peers: PeerId) -> None:
        """Let these contribute to the open round, and all agree on what comes of it."""
        self.delivers(*peers)
        if self.run.round is not None and not self.run.round.roster:
            self.passes(100.0)
        self.commits(BUILT_IN, *peers)
        for member in list(self.run.membership.connected()):
            self.at_state(member.peer, self.run.committed)
