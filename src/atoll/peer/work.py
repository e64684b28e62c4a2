"""Which of its leased samples a peer's local weights contain. Pure bookkeeping.

    leases, in the order of their ids:   | ====consumed==== | ---left--- |

The work of a round is done when nothing is left; then the contribution names all of the leases.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from atoll.ids import Lease, LeaseId


@dataclass(slots=True)
class LocalWork:
    leases: tuple[Lease, ...] = ()
    consumed: int = 0  # samples, counted from the first lease on

    def hold(self, leases: Iterable[Lease]) -> None:
        """Note which leases the host says are ours now.

        A lease that the local weights contain stays ours until a commit, or the host says reset.
        """
        kept = tuple(sorted(leases, key=lambda lease: lease.id))
        if self.touched() != tuple(lease.id for lease in kept)[: len(self.touched())]:
            self.consumed = 0
        self.leases = kept

    def consume(self, num_samples: int) -> None:
        self.consumed += num_samples

    def clear(self) -> None:
        """Note that the local weights are the global ones again."""
        self.consumed = 0

    def left(self) -> tuple[tuple[int, int], ...]:
        """Return the spans (start, stop) of samples that are still to be trained on, in order."""
        spans: list[tuple[int, int]] = []
        skip = self.consumed
        for lease in self.leases:
            size = lease.stop - lease.start
            if skip < size:
                spans.append((lease.start + skip, lease.stop))
            skip = max(0, skip - size)
        return tuple(spans)

    def touched(self) -> tuple[LeaseId, ...]:
        """Return the leases of which the local weights contain at least one sample."""
        ids: list[LeaseId] = []
        start = 0
        for lease in self.leases:
            if start < self.consumed:
                ids.append(lease.id)
            start += lease.stop - lease.start
        return tuple(ids)

    @property
    def is_whole(self) -> bool:
        """Return whether the local weights contain all that we lease, and something at all."""
        return self.consumed > 0 and not self.left()
