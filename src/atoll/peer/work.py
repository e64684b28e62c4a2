"""Which of its leased samples a peer's local weights contain. Pure bookkeeping.

    leases, in order of ids:   | ==consumed, offered or not== | --left-- |

A contribution consists of whole leases: those that are consumed by then and not offered yet. Where
training goes on during the exchange, more follow in the next one.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from atoll.ids import Lease, LeaseId, RoundId


@dataclass(slots=True)
class LocalWork:
    """`consumed` samples, counted from the first lease on, are in the local weights.

    `in_flight` of those after them are being trained on; as they may be in the weights at any
    moment, their leases count as touched. `settled` samples were committed, and are not counted any
    more. `offers` are the leases of each contribution that is under way; those of a `lost` one are
    not consumed any more: the trainer died with that work, and begins anew.
    """

    leases: tuple[Lease, ...] = ()
    consumed: int = 0
    in_flight: int = 0
    settled: int = 0
    offers: dict[RoundId, tuple[LeaseId, ...]] = field(default_factory=dict)
    lost: set[RoundId] = field(default_factory=set)

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

    def settle(self, round_id: RoundId, lease_ids: Collection[LeaseId]) -> bool:
        """Note that a round has committed these leases of ours: global weights contain them.

        Returns whether the local weights are still good for what is left in them. If what was
        committed is not what they offered (a former life of ours did it), they are void.
        """
        committed = tuple(lease for lease in self.leases if lease.id in lease_ids)
        if not committed:
            return True
        left = {lease.id for lease in self.leases}.intersection(self.offers.get(round_id, ()))
        as_offered = {lease.id for lease in committed} == left
        is_good = as_offered and round_id not in self.lost
        self.withdraw(round_id)
        self.leases = tuple(lease for lease in self.leases if lease.id not in lease_ids)
        num_samples = sum(lease.num_samples for lease in committed)
        self.settled += num_samples
        if is_good:
            self.consumed -= num_samples
        else:
            self.clear()
        return is_good

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

    def end(self) -> None:
        """Note that none of the samples in flight will come into the weights any more."""
        self.in_flight = 0

    def clear(self) -> None:
        """Note that the local weights are the global ones again, or are going to be.

        Contributions that are under way are not ended by that, but their work is lost here.
        """
        self.consumed = self.in_flight = 0
        self.lost = set(self.offers)

    def next_stop(self) -> int:
        """Return where the lease that is to be worked on next ends, from the first lease on.

        What is begun is part of the next contribution, so nobody should begin two at a time.
        """
        stop = 0
        for lease in self.leases:
            stop += lease.num_samples
            if stop > self.consumed:
                break
        return stop

    # --- contributions --------------------------------------------------------------------------

    def round_target(self, num_samples: int) -> int:
        """Return how many samples, from the first lease on, the next contribution waits for.

        They are the fewest whole leases with so many samples that are not offered yet, and with all
        that was begun; or all. So the snapshot contains no lease in part. 0: all are offered.
        """
        offered = self._offered()
        reached = new = 0
        for lease in self.leases:
            if new >= num_samples and reached >= self.consumed + self.in_flight:
                break
            reached += lease.num_samples
            new += 0 if lease.id in offered else lease.num_samples
        return reached if new else 0

    def offer(self, round_id: RoundId) -> tuple[LeaseId, ...]:
        """Offer what is consumed of whole leases, if other contributions do not offer all of it.

        Returns these leases: they make the contribution to this round. Those that rounds before it
        do not commit, it may.
        """
        self.withdraw(round_id)
        whole = self._whole()
        if self._offered().issuperset(whole):
            return ()
        self.offers[round_id] = whole
        return whole

    def withdraw(self, round_id: RoundId) -> None:
        """Note that the contribution was not committed: what is in it is part of the next one."""
        self.offers.pop(round_id, None)
        self.lost.discard(round_id)

    def forget_offers(self) -> None:
        """Note that no contribution is under way any more."""
        self.offers.clear()
        self.lost.clear()

    # --- what there is --------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        return sum(lease.num_samples for lease in self.leases)

    @property
    def num_offered(self) -> int:
        """How many samples are in contributions that are under way."""
        offered = self._offered()
        return sum(lease.num_samples for lease in self.leases if lease.id in offered)

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
            start += lease.num_samples
        return tuple(ids)

    @property
    def is_all_offered(self) -> bool:
        """Whether the local weights contain nothing that no contribution has."""
        return self._offered().issuperset(self.touched())

    def _offered(self) -> set[LeaseId]:
        return {lease_id for leases in self.offers.values() for lease_id in leases}

    def _whole(self) -> tuple[LeaseId, ...]:
        """Return the leases of which every sample is consumed."""
        ids: list[LeaseId] = []
        stop = 0
        for lease in self.leases:
            stop += lease.num_samples
            if stop <= self.consumed:
                ids.append(lease.id)
        return tuple(ids)

    def _spans(self, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """Return where in the run's order the samples lie that are `start` to `stop - 1` here."""
        spans: list[tuple[int, int]] = []
        place = 0
        for lease in self.leases:
            first, last = max(start, place), min(stop, place + lease.num_samples)
            if first < last:
                spans.append((lease.start + first - place, lease.start + last - place))
            place += lease.num_samples
        return tuple(spans)
