"""Which of its leased samples a peer's local weights contain. Pure bookkeeping.

    leases, in the order of their ids:   | ====consumed==== | ---left--- |

The work of a round is done when nothing is left; then the contribution names all of the leases.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from atoll.ids import Lease, LeaseId


@dataclass(slots=True)
class LocalWork:
    """`consumed` samples, counted from the first lease on, are in the local weights.

    `in_flight` of the ones after them are being trained on; as they may be in the weights at any
    moment, their leases count as touched.
    """

    leases: tuple[Lease, ...] = ()
    consumed: int = 0
    in_flight: int = 0

    def hold(self, leases: Iterable[Lease]) -> bool:
        """Note which leases the host says are ours now.

        Returns whether all that the local weights contain is still ours; if not, they are void.
        """
        kept = tuple(sorted(leases, key=lambda lease: lease.id))
        touched = self.touched()
        whole = touched == tuple(lease.id for lease in kept)[: len(touched)]
        if not whole:
            self.clear()
        self.leases = kept
        return whole

    def settle(self, lease_ids: Collection[LeaseId]) -> None:
        """Note that these leases of ours were committed: the new global weights contain them."""
        if any(lease.id in lease_ids for lease in self.leases):
            self.leases = tuple(lease for lease in self.leases if lease.id not in lease_ids)
            self.clear()

    def begin(self) -> tuple[tuple[int, int], ...]:
        """Return the spans to train on now: all that is left."""
        spans = self.left()
        self.in_flight = sum(stop - start for start, stop in spans)
        return spans

    def end(self, num_samples: int) -> None:
        """Note that so many of the samples in flight are in the weights, and the others not."""
        if self.in_flight:
            self.consumed += num_samples
        self.in_flight = 0

    def clear(self) -> None:
        """Note that the local weights are the global ones again, or are going to be."""
        self.consumed = self.in_flight = 0

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
            if start < self.consumed + self.in_flight:
                ids.append(lease.id)
            start += lease.stop - lease.start
        return tuple(ids)

    @property
    def is_whole(self) -> bool:
        """Return whether the local weights contain all that we lease, and something at all."""
        return self.consumed > 0 and not self.left()
