"""Which of its leased samples a peer's local weights contain. Pure bookkeeping.

    leases, in order of ids:   | ==offered== | ==consumed, not offered== | --left-- |

A contribution consists of whole leases. Where training waits for the exchange, it names all of
them; where it goes on meanwhile, those that are consumed by then, and more follow in the next one.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from atoll.ids import Lease, LeaseId


@dataclass(slots=True)
class LocalWork:
    """`consumed` samples, counted from the first lease on, are in the local weights.

    `offered` of them are in the contribution that is under way; 0: none is. `in_flight` of those
    after the consumed ones are being trained on; as they may be in the weights at any moment, their
    leases count as touched. `settled` samples were committed, and are not counted any more.
    """

    leases: tuple[Lease, ...] = ()
    consumed: int = 0
    offered: int = 0
    in_flight: int = 0
    settled: int = 0

    # --- leases ---------------------------------------------------------------------------------

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

    def settle(self, lease_ids: Collection[LeaseId]) -> bool:
        """Note that these leases of ours were committed: the new global weights contain them.

        Returns whether the local weights are still good for what is left in them. If what was
        committed is not what is offered (a former life of ours did it), they are void.
        """
        committed = tuple(lease for lease in self.leases if lease.id in lease_ids)
        if not committed:
            return True
        as_offered = tuple(lease.id for lease in committed) == self._whole(self.offered)
        self.leases = tuple(lease for lease in self.leases if lease.id not in lease_ids)
        self.settled += sum(_size(lease) for lease in committed)
        if not as_offered:
            self.clear()
            return False
        self.consumed -= self.offered
        self.offered = 0
        return True

    # --- training -------------------------------------------------------------------------------

    def begin(self, stop: int) -> tuple[tuple[int, int], ...]:
        """Return the spans to train on now: what is left of the first `stop` samples."""
        spans = self._spans(self.consumed, stop)
        self.in_flight = sum(stop - start for start, stop in spans)
        return spans

    def advance(self, num_samples: int) -> None:
        """Note that so many of the samples in flight are in the weights, and the others not yet."""
        if self.in_flight:
            self.consumed += num_samples
            self.in_flight -= num_samples

    def end(self, num_samples: int) -> None:
        """Note that so many of the samples in flight are in the weights, and the others not."""
        self.advance(num_samples)
        self.in_flight = 0

    def clear(self) -> None:
        """Note that the local weights are the global ones again, or are going to be."""
        self.consumed = self.offered = self.in_flight = 0

    # --- contributions --------------------------------------------------------------------------

    def round_target(self, num_samples: int) -> int:
        """Return how many samples, from the first lease on, the next contribution waits for.

        They are the fewest whole leases with so many samples that are not offered yet, and with all
        that was begun; or all. So the snapshot contains no lease in part.
        """
        reached = 0
        for lease in self.leases:
            begun = self.consumed + self.in_flight
            if reached >= max(self.offered + num_samples, begun):
                break
            reached += _size(lease)
        return reached

    def offer(self) -> tuple[LeaseId, ...]:
        """Offer what is consumed of whole leases, and return these: they make a contribution."""
        assert not self.offered, "a contribution is under way already"
        offered = self._whole(self.consumed)
        self.offered = sum(_size(lease) for lease in self.leases[: len(offered)])
        return offered

    def withdraw(self) -> None:
        """Note that the contribution was not committed: what is in it is part of the next one."""
        self.offered = 0

    # --- what there is --------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        return sum(_size(lease) for lease in self.leases)

    @property
    def is_whole(self) -> bool:
        """Return whether the local weights contain all that we lease, and something at all."""
        return self.consumed > 0 and not self.left()

    def left(self) -> tuple[tuple[int, int], ...]:
        """Return the spans (start, stop) of samples that are still to be trained on, in order."""
        return self._spans(self.consumed, self.num_samples)

    def touched(self) -> tuple[LeaseId, ...]:
        """Return the leases of which the local weights contain at least one sample."""
        ids: list[LeaseId] = []
        start = 0
        for lease in self.leases:
            if start < self.consumed + self.in_flight:
                ids.append(lease.id)
            start += _size(lease)
        return tuple(ids)

    def _whole(self, num_samples: int) -> tuple[LeaseId, ...]:
        """Return the leases of which the first `num_samples` contain every sample."""
        ids: list[LeaseId] = []
        stop = 0
        for lease in self.leases:
            stop += _size(lease)
            if stop <= num_samples:
                ids.append(lease.id)
        return tuple(ids)

    def _spans(self, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """Return where in the run's order the samples lie that are `start` to `stop - 1` here."""
        spans: list[tuple[int, int]] = []
        place = 0
        for lease in self.leases:
            first, last = max(start, place), min(stop, place + _size(lease))
            if first < last:
                spans.append((lease.start + first - place, lease.start + last - place))
            place += _size(lease)
        return tuple(spans)


def _size(lease: Lease) -> int:
    return lease.stop - lease.start
