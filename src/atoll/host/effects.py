"""What a decision of the host asks its shell to do, in this order, as plain values."""

from dataclasses import dataclass
from typing import TypeAlias

from atoll.events import Event
from atoll.ids import PeerId, RoundId
from atoll.net.records import Record
from atoll.net.wire import Message


@dataclass(frozen=True, slots=True)
class Append:
    """Make these records durable before anything that follows."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Send:
    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class SendCommits:
    """Send the peer the commits of the rounds after `after`, up to `through`, from the journal."""

    peer: PeerId
    after: RoundId
    through: RoundId


@dataclass(frozen=True, slots=True)
class Drop:
    """End the peer's connection."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    event: Event


Effect: TypeAlias = Append | Send | SendCommits | Drop | Report
