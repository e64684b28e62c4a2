"""Who is in the run, as the host sees it: a pure function of what it heard, and when.

    hello --> connected --(silent, or its connection ended)--> away --(for too long)--> gone
                  ^-----------------------hello------------------'

A member that is away keeps its leases for `reconnect_s`: it may just have lost its line. One that
is gone has none; if it comes back, it starts from the committed state. No clock or socket in here.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from atoll.config import SyncConfig
from atoll.host.numbers import peak_of, rate_of
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.net.wire import Address, Hello
from atoll.sentences import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    peer: PeerId
    name: str
    device: str = ""
    peak_flops: float = 0.0  # of its devices, as it says; 0: unknown
    trains: bool = True
    address: Address | None = None  # where others can reach it; None until the host has tried
    probed: bool = False  # the host has tried to reach it
    connected: bool = True
    changed_at: float = 0.0  # when it came, or went away
    round: RoundId = INITIAL  # the state that it reported last
    state: Digest | None = None
    up: float | None = None  # bytes per second that its line carries, as it measures
    down: float | None = None
    samples_per_s: float | None = None  # of its inner steps, as it measures
    rests: bool = False  # its owner has paused it: it follows, and no round waits for it
    place: str = ""  # where its owner says that it is

    @classmethod
    def of(cls, peer: PeerId, hello: Hello) -> "Member":
        """Return the member that says hello, as it describes itself."""
        return cls(
            peer=peer,
            name=one_line(hello.name),
            trains=hello.trains,
            rests=hello.rests,
            place=one_line(hello.place),
        )


@dataclass(slots=True)
class Membership:
    members: dict[PeerId, Member] = field(default_factory=dict)
    heard_at: dict[PeerId, float] = field(default_factory=dict)
    version: int = field(default=0, compare=False)  # another one with each change
    _connected: list[PeerId] = field(default_factory=list)  # in their order, as below
    _reachable: list[PeerId] = field(default_factory=list)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self.members

    def get(self, peer: PeerId) -> Member | None:
        return self.members.get(peer)

    def connected(self) -> list[Member]:
        """Return the connected members in the order of their ids."""
        return [self.members[peer] for peer in self._connected]

    @property
    def num_connected(self) -> int:
        return len(self._connected)

    def reachable(self) -> list[PeerId]:
        """Return the connected members that others can reach, in the order of their ids."""
        return list(self._reachable)

    def around(self, peer: PeerId, num: int) -> list[PeerId]:
        """Return that many of those that others can reach, beginning behind `peer`, in a circle.

        So all of them are named equally often. In the order of their ids if that is all of them.
        """
        reachable = self._reachable
        if len(reachable) <= num:
            return list(reachable)
        start = bisect_left(reachable, peer)
        return reachable[start : start + num] + reachable[: max(0, start + num - len(reachable))]

    def scattered(self, peer: PeerId, num: int) -> list[PeerId]:
        """Return up to so many of those that others can reach, ever further behind `peer`.

        All of them are named equally often; and since each names some far ones, there are few steps
        from anybody to anybody.
        """
        reachable, start = self._reachable, bisect_left(self._reachable, peer)
        if len(reachable) <= num:
            return [other for other in reachable if other != peer]
        step, named = 0, []
        for k in range(num):
            step = max(step + 1, round(len(reachable) ** ((k + 0.5) / num)))
            named.append(reachable[(start + step) % len(reachable)])
        return named

    def is_connected(self, peer: PeerId) -> bool:
        member = self.members.get(peer)
        return member is not None and member.connected

    def enter(self, member: Member, *, now: float) -> None:
        """Note that the member said hello."""
        self.heard_at[member.peer] = now
        self._put(replace(member, connected=True, changed_at=now))

    def expect(self, peer: PeerId, *, now: float) -> None:
        """Note that the member is away since now, and may come back."""
        self._put(Member(peer=peer, name="", connected=False, changed_at=now))

    def hear(self, peer: PeerId, *, now: float) -> None:
        if peer in self.members:
            self.heard_at[peer] = now

    def reach(self, peer: PeerId, address: Address | None) -> None:
        """Note where others can reach the member, if they can."""
        if member := self.members.get(peer):
            self._put(replace(member, address=address, probed=True))

    def report(
        self, peer: PeerId, *, round_id: RoundId, state: Digest | None, device: str = ""
    ) -> None:
        """Note which state the member holds; None: one that is of no use."""
        if member := self.members.get(peer):
            device = one_line(device) or member.device
            self._put(replace(member, round=round_id, state=state, device=device))

    def measure(
        self,
        peer: PeerId,
        *,
        up: float,
        down: float,
        samples_per_s: float = 0.0,
        peak_flops: float = 0.0,
    ) -> None:
        """Note how fast the member's line is, and its trainer; what is no rate is none."""
        if member := self.members.get(peer):
            self._put(
                replace(
                    member,
                    up=rate_of(up),
                    down=rate_of(down),
                    samples_per_s=rate_of(samples_per_s),
                    peak_flops=peak_of(peak_flops),
                )
            )

    def rest(self, peer: PeerId, *, rests: bool) -> None:
        """Note that the member was paused by its owner, or goes on."""
        if member := self.members.get(peer):
            self._put(replace(member, rests=rests))

    def lose(self, peer: PeerId, *, now: float) -> None:
        """Note that the member's connection ended: it is away."""
        member = self.members.get(peer)
        if member and member.connected:
            gone = replace(member, connected=False, changed_at=now, address=None, state=None)
            self._put(gone)

    def remove(self, peer: PeerId) -> None:
        self.version += 1
        self.members.pop(peer, None)
        self.heard_at.pop(peer, None)
        _list(self._connected, peer, is_in=False)
        _list(self._reachable, peer, is_in=False)

    def silent(self, policy: SyncConfig, *, now: float) -> list[PeerId]:
        """Return the connected members that said nothing for too long: frozen, or cut off."""
        heard_at = self.heard_at
        return [peer for peer in self._connected if now - heard_at[peer] > policy.silent_s]

    def overdue(self, policy: SyncConfig, *, now: float) -> list[PeerId]:
        """Return the members that have been away for too long to keep their leases."""
        away: Iterable[Member] = (m for m in self.members.values() if not m.connected)
        return sorted(m.peer for m in away if now - m.changed_at > policy.reconnect_s)

    def _put(self, member: Member) -> None:
        self.version += 1
        self.members[member.peer] = member
        _list(self._connected, member.peer, is_in=member.connected)
        is_reachable = member.connected and member.address is not None
        _list(self._reachable, member.peer, is_in=is_reachable)


def _list(peers: list[PeerId], peer: PeerId, *, is_in: bool) -> None:
    """Have the peer in an ordered list, or not."""
    at = bisect_left(peers, peer)
    was_in = at < len(peers) and peers[at] == peer
    if is_in and not was_in:
        peers.insert(at, peer)
    elif was_in and not is_in:
        del peers[at]
