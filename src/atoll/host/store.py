"""Where a journal is kept: a file of the host's directory, or a database that several hosts share.

    Journal --signed entries--> Store    file_store.py: SQLite    postgres_store.py: Postgres

A store keeps one chain and never lets two writers both append: an entry has one place in it, and
who comes second learns of it. Whoever becomes the leader appends `Led`; so what an older leader
appends after that comes second. That is the whole of the fence, and no clock takes part in it.

A shared store also knows until when the leader leads: long enough after its last sign of life, a
standby takes over. That clock is the database's own, and decides when, never who may append.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from atoll.net.records import Entry


@dataclass(frozen=True, slots=True)
class Lead:
    """Who leads, as a shared store knows it. Times are seconds of the store's clock."""

    epoch: int
    address: str
    ends_at: float  # unless it is renewed before
    is_over: bool


class Store(Protocol):
    @property
    def place(self) -> str:
        """What messages to people call it."""

    @property
    def is_far(self) -> bool:
        """Whether an append may take long: it then has to be done in a thread."""

    def read(self, *, start: int = 0) -> list[Entry]:
        """Return the entries from number `start` on, in order, as they are: nothing is checked.

        Raises:
            DamagedError: the store is none, or cannot be read.
        """

    def append(self, entries: Sequence[Entry]) -> bool:
        """Make the entries durable, all or none. False: somebody else has appended since.

        Raises:
            RunError: the disk is full, or the database cannot be reached.
        """

    def close(self) -> None: ...


class Word(Enum):
    """What a standby is told when it says that it is there."""

    STAY = "stay"
    LEAD = "lead"  # the operator wants it to take over, whoever leads
    LEAVE = "leave"  # the run is complete


class SharedStore(Store, Protocol):
    """A store that hosts on several machines reach. Any method may raise a RunError."""

    def lead(self) -> Lead | None:
        """Return who leads; None: nobody ever did."""

    def take_lead(self, led: Entry, *, lead_s: float, called: bool) -> bool:
        """Append this record of a new leader, and let it lead for `lead_s`; return whether it does.

        It does not while another host leads, unless it is `called` to; nor if `led` comes second.
        """

    def renew_lead(self, epoch: int, *, lead_s: float) -> bool:
        """Let the leader of this epoch lead for `lead_s` from now; False: it has been deposed."""

    def end_lead(self, epoch: int) -> None:
        """End the lead of this epoch, if it still lasts: a standby need not wait."""

    def stand_by(self, address: str, *, stays_s: float) -> Word:
        """Note that a host stands by there, for so long from now; return what it is told."""

    def standbys(self) -> list[str]:
        """Return where hosts stand by."""

    def leave(self, address: str) -> None:
        """Forget the standby at this address."""

    def tell(self, address: str, word: Word) -> bool:
        """Have a word for the standby at this address; False: none stands by there."""
