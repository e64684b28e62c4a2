"""Faults as data: what goes wrong, to whom, when, and for how long.

    Script = (Fault(when=AtTime | InRound | OnMessage, ...), ...)     inflict.py lets them happen

A script prints as Python that can be pasted into a test, and is JSON for a command line. Whatever
goes wrong for some seconds is mended after them: the run has to end well then.
"""

from typing import Literal, TypeAlias

from msgspec import Struct

from atoll.peer.patience import HUNG_S
from atoll.sim.journal import Moment

NEVER = 1e9  # seconds until something is mended that never is


class AtTime(Struct, frozen=True, tag=True):
    seconds: float


class InRound(Struct, frozen=True, tag=True):
    """So long after the host first plans this round."""

    round: int
    after_s: float = 0.0


class OnMessage(Struct, frozen=True, tag=True):
    """When this message is sent for the `count`-th time; empty: by anyone, to anyone."""

    kind: str
    count: int = 1
    sender: str = ""
    receiver: str = ""


When: TypeAlias = AtTime | InRound | OnMessage


class Crash(Struct, frozen=True, kw_only=True, tag=True):
    """The process ends at once, and is started again; without `power`, so does its kernel."""

    when: When
    who: str
    back_s: float = 5.0
    power: bool = True


class HostCrash(Struct, frozen=True, kw_only=True, tag=True):
    """A host ends just before or after the `append`-th write to the journal."""

    append: int
    moment: Moment = "after"
    back_s: float = 5.0


class Freeze(Struct, frozen=True, kw_only=True, tag=True):
    """The process does nothing; its kernel answers."""

    when: When
    who: str
    seconds: float


class Slow(Struct, frozen=True, kw_only=True, tag=True):
    """All that its processors do takes so many times as long."""

    when: When
    who: str
    factor: float
    seconds: float


class Cut(Struct, frozen=True, kw_only=True, tag=True):
    """No packet gets through between these two."""

    when: When
    one: str
    other: str
    seconds: float


class Partition(Struct, frozen=True, kw_only=True, tag=True):
    """No packet gets through between these and all others."""

    when: When
    side: tuple[str, ...]
    seconds: float


class Flicker(Struct, frozen=True, kw_only=True, tag=True):
    """All its connections break at once; it can dial again."""

    when: When
    who: str


class Tamper(Struct, frozen=True, kw_only=True, tag=True):
    """Harm to one message; see `network.Harm`. `seconds`: of a delay."""

    when: OnMessage
    harm: Literal["lose", "repeat", "delay", "corrupt"]
    seconds: float = 5.0


class DiskFull(Struct, frozen=True, kw_only=True, tag=True):
    """Nothing can be written. Whoever ends because of that is started again when there is room."""

    when: When
    who: str
    seconds: float


class ClockSkew(Struct, frozen=True, kw_only=True, tag=True):
    """Its wall clock jumps by so much."""

    when: When
    who: str
    by_s: float


class TrainerDeath(Struct, frozen=True, kw_only=True, tag=True):
    when: When
    who: str


class TrainerHang(Struct, frozen=True, kw_only=True, tag=True):
    """The trainer says nothing any more, until its agent ends it."""

    when: When
    who: str


class Leave(Struct, frozen=True, kw_only=True, tag=True):
    """A person stops the peer, and starts it again later; `in_order`: after what it has begun."""

    when: When
    who: str
    back_s: float = 5.0
    in_order: bool = False


class Pause(Struct, frozen=True, kw_only=True, tag=True):
    """A person pauses the peer, and lets it go on later."""

    when: When
    who: str
    seconds: float


class BadWeights(Struct, frozen=True, kw_only=True, tag=True):
    """The trainer's weights are multiplied by this, once: `nan`, or far too much."""

    when: When
    who: str
    factor: float


class TakeOver(Struct, frozen=True, kw_only=True, tag=True):
    """The operator tells this host to lead, if it stands by."""

    when: When
    who: str


Fault: TypeAlias = (
    Crash
    | HostCrash
    | Freeze
    | Slow
    | Cut
    | Partition
    | Flicker
    | Tamper
    | DiskFull
    | ClockSkew
    | TrainerDeath
    | TrainerHang
    | Leave
    | Pause
    | BadWeights
    | TakeOver
)
Script: TypeAlias = tuple[Fault, ...]


def lasts_s(fault: Fault) -> float:
    """Return how long it takes until the fault is mended."""
    match fault:
        case Crash(back_s=seconds) | HostCrash(back_s=seconds) | Leave(back_s=seconds):
            return seconds
        case Tamper(harm="delay", seconds=seconds):
            return seconds
        case TrainerHang():
            return HUNG_S
        case Freeze() | Slow() | Cut() | Partition() | DiskFull() | Pause():
            return fault.seconds
        case _:
            return 0.0
