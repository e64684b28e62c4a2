"""What a member has sent and received, by what it was for."""

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import asdict

MOST_BYTES = 2**63 - 1  # what a peer says of itself may be anything: sums stay within this
Bytes = Annotated[int, Meta(ge=0, le=MOST_BYTES)]


class Traffic(Struct, kw_only=True):
    """Bytes of payloads by kind, and in `control` those of all messages.

    `state` is states and datasets, for joiners.
    """

    contributions_sent: Bytes = 0
    contributions_received: Bytes = 0
    updates_sent: Bytes = 0
    updates_received: Bytes = 0
    state_sent: Bytes = 0
    state_received: Bytes = 0
    control_sent: Bytes = 0
    control_received: Bytes = 0

    @property
    def sent(self) -> int:
        return sum(value for key, value in asdict(self).items() if key.endswith("_sent"))

    @property
    def received(self) -> int:
        return sum(value for key, value in asdict(self).items() if key.endswith("_received"))

    def __add__(self, other: "Traffic") -> "Traffic":
        theirs = asdict(other)
        return Traffic(
            **{key: min(value + theirs[key], MOST_BYTES) for key, value in asdict(self).items()}
        )

    def since(self, before: "Traffic") -> "Traffic":
        """Return what came after `before`, an earlier reading of the same counters."""
        then = asdict(before)
        return Traffic(**{key: max(0, value - then[key]) for key, value in asdict(self).items()})
