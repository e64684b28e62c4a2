"""Who may train on which samples: the host's book of leases.

    free --grant--> held by one peer --commit--> committed
      ^                  |
      +----release-------+          samples from `frontier` on were never granted

A sample below the frontier is in exactly one of the three states, so none is committed twice. Spans
that touch are merged: the book stays small however long the run. An entry costs the same however
many peers there are; a refused one changes nothing.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from atoll.ids import Lease, LeaseId, PeerId


class Span(NamedTuple):
    """The samples `start` to `stop - 1`."""

    start: int
    stop: int


FIRST_ID = LeaseId(1)


@dataclass(slots=True, kw_only=True)
class LeaseBook:
    next_id: LeaseId = FIRST_ID
    frontier: int = 0
    free: tuple[Span, ...] = ()
    committed: tuple[Span, ...] = ()
    held: dict[PeerId, tuple[Lease, ...]] = field(default_factory=dict)

    def grant(self, peer: PeerId, *, num_samples: int) -> tuple[Lease, ...]:
        """Give the peer this many samples, and return the leases for them.

        The lowest free samples go first, then new ones; one lease for each span that this takes.
        """
        assert num_samples > 0
        available = _merged([*self.free, Span(self.frontier, self.frontier + num_samples)])
        taken, rest = _take(available, num_samples)
        leases = tuple(
            Lease(id=LeaseId(id_), start=span.start, stop=span.stop)
            for id_, span in enumerate(taken, start=self.next_id)
        )
        frontier = self.frontier = max(self.frontier, taken[-1].stop)
        self.next_id = LeaseId(self.next_id + len(leases))
        self.free = tuple(Span(s.start, min(s.stop, frontier)) for s in rest if s.start < frontier)
        self.held[peer] = self.held_by(peer) + leases
        return leases

    def release(self, peer: PeerId, lease_ids: Collection[LeaseId]) -> None:
        """Make the samples of these leases of the peer free again.

        Raises:
            ValueError: it does not hold one of them, or one is named twice: our bug.
        """
        self.free = _merged([*self.free, *self._withdraw({peer: lease_ids})])

    def commit(self, lease_ids: Mapping[PeerId, Collection[LeaseId]]) -> None:
        """Note that the samples of these leases of each peer became part of the model.

        Raises:
            ValueError: a peer does not hold one of its own, or one is named twice: our bug.
        """
        self.committed = _merged([*self.committed, *self._withdraw(lease_ids)])

    def held_by(self, peer: PeerId) -> tuple[Lease, ...]:
        """Return the leases of `peer`, the oldest first."""
        return self.held.get(peer, ())

    def _withdraw(self, lease_ids: Mapping[PeerId, Collection[LeaseId]]) -> list[Span]:
        """Take these leases from those that hold them, and return their spans."""
        kept, spans = {}, []
        for peer, leaving in lease_ids.items():
            held = {lease.id: lease for lease in self.held_by(peer)}
            for lease_id in leaving:
                if (lease := held.pop(lease_id, None)) is None:
                    raise ValueError(f"{peer} does not hold lease {lease_id}, or not twice")
                spans.append(Span(lease.start, lease.stop))
            kept[peer] = tuple(held.values())
        for peer, leases in kept.items():
            self.held[peer] = leases
            if not leases:
                del self.held[peer]
        return spans


def _take(spans: Iterable[Span], num_samples: int) -> tuple[list[Span], list[Span]]:
    """Return the first `num_samples` samples of the spans, and the rest."""
    taken, rest = [], []
    for span in spans:
        cut = min(span.stop, span.start + num_samples)
        if span.start < cut:
            taken.append(Span(span.start, cut))
        if cut < span.stop:
            rest.append(Span(cut, span.stop))
        num_samples -= cut - span.start
    return taken, rest


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the same samples in ascending spans that do not touch."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and merged[-1].stop == span.start:
            merged[-1] = Span(merged[-1].start, span.stop)
        else:
            merged.append(span)
    return tuple(merged)
