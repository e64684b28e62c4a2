"""Who is in the run, as the host sees it: a pure function of what it heard, and when.

    hello --> connected --(silent, or its connection ended)--> away --(for too long)--> gone
                  ^-----------------------hello------------------'

A member that is away keeps its leases for `reconnect_s`: it may just have lost its line. One that
is gone has none; if it comes back, it starts from the committed state. No clock or socket in here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import isfinite

from atoll.config import SyncConfig
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.net.wire import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    peer: PeerId
    name: str
    device: str = ""
    trains: bool = True
    address: Address | None = None  # where others can reach it; None until the host has tried
    probed: bool = False  # the host has tried to reach it
    connected: bool = True
    changed_at: float = 0.0  # when it came, or went away
    heard_at: float = 0.0
    round: RoundId = INITIAL  # the state that it reported last
    state: Digest | None = None
    up: float | None = None  # bytes per second that its line carries, as it measures
    down: float | None = None
    samples_per_s: float | None = None  # of its inner steps, as it measures


@dataclass(slots=True)
class Membership:
    members: dict[PeerId, Member] = field(default_factory=dict)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self.members

    def get(self, peer: PeerId) -> Member | None:
        return self.members.get(peer)

    def connected(self) -> list[Member]:
        """Return the connected members in the order of their ids."""
        return [m for _, m in sorted(self.members.items()) if m.connected]

    def is_connected(self, peer: PeerId) -> bool:
        member = self.members.get(peer)
        return member is not None and member.connected

    def enter(self, member: Member, *, now: float) -> None:
        """Note that the member said hello."""
        self.members[member.peer] = replace(member, connected=True, changed_at=now, heard_at=now)

    def hear(self, peer: PeerId, *, now: float) -> None:
        if member := self.members.get(peer):
            self.members[peer] = replace(member, heard_at=now)

    def reach(self, peer: PeerId, address: Address | None) -> None:
        """Note where others can reach the member, if they can."""
        if member := self.members.get(peer):
            self.members[peer] = replace(member, address=address, probed=True)

    def report(
        self, peer: PeerId, *, round_id: RoundId, state: Digest | None, device: str = ""
    ) -> None:
        """Note which state the member holds; None: one that is of no use."""
        if member := self.members.get(peer):
            device = device or member.device
            self.members[peer] = replace(member, round=round_id, state=state, device=device)

    def measure(self, peer: PeerId, *, up: float, down: float, samples_per_s: float = 0.0) -> None:
        """Note how fast the member's line is, and its trainer; what is no rate is none."""
        if member := self.members.get(peer):
            self.members[peer] = replace(
                member, up=_rate(up), down=_rate(down), samples_per_s=_rate(samples_per_s)
            )

    def lose(self, peer: PeerId, *, now: float) -> None:
        """Note that the member's connection ended: it is away."""
        member = self.members.get(peer)
        if member and member.connected:
            self.members[peer] = replace(
                member, connected=False, changed_at=now, address=None, state=None
            )

    def remove(self, peer: PeerId) -> None:
        self.members.pop(peer, None)

    def silent(self, policy: SyncConfig, *, now: float) -> list[PeerId]:
        """Return the connected members that said nothing for too long: frozen, or cut off."""
        return [m.peer for m in self.connected() if now - m.heard_at > policy.silent_s]

    def overdue(self, policy: SyncConfig, *, now: float) -> list[PeerId]:
        """Return the members that have been away for too long to keep their leases."""
        away: Iterable[Member] = (m for m in self.members.values() if not m.connected)
        return sorted(m.peer for m in away if now - m.changed_at > policy.reconnect_s)


def _rate(rate: float) -> float | None:
    return rate if isfinite(rate) and rate > 0 else None
