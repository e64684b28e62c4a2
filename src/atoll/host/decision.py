"""What can be due in an open round, and what that depends on beside the round, as plain values."""

from dataclasses import dataclass
from typing import TypeAlias

from atoll.ids import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """Who could do what for a round, now.

    `away` may come back. `able` are connected and hold a state that the round can start from, so
    they can put updates on disk; `can_reduce` are those of them that others can reach. `keeper` is
    the host's built-in member: if it is able, its disk is one of those that a commit needs. Who is
    `resting` is connected, and neither able nor waited for.
    """

    connected: frozenset[PeerId]
    away: frozenset[PeerId]
    able: frozenset[PeerId]
    can_reduce: frozenset[PeerId]
    keeper: PeerId
    resting: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One line of a roster: `share` of the mean is this peer's; all shares add up to 1."""

    peer: PeerId
    share: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Wait:
    reason: str


@dataclass(frozen=True, slots=True)
class Expect:
    """All that the round waits for are on their way: form the updates of these as slices come."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Take exactly these contributors, now."""

    peers: tuple[PeerId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Give the slices of these reducers to others."""

    reducers: frozenset[PeerId]
    reason: str


@dataclass(frozen=True, slots=True)
class Reopen:
    """Nobody of the roster is left: collect again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    pass


Decision: TypeAlias = Wait | Expect | Close | Replace | Reopen | Commit
