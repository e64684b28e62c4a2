"""Who may train on which samples: the host's book of leases, as a value.

    free --grant--> held by one peer --commit--> committed
      ^                  |
      +----release-------+          samples from `frontier` on were never granted

A sample below the frontier is in exactly one of the three states, so none is committed twice. Spans
that touch are merged: the book stays small however long the run.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from atoll.ids import Lease, LeaseId, PeerId


class Span(NamedTuple):
    """The samples `start` to `stop - 1`."""

    start: int
    stop: int


FIRST_ID = LeaseId(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseBook:
    next_id: LeaseId = FIRST_ID
    frontier: int = 0
    free: tuple[Span, ...] = ()
    committed: tuple[Span, ...] = ()
    held: Mapping[PeerId, tuple[Lease, ...]] = field(default_factory=dict)


def grant(
    book: LeaseBook, peer: PeerId, *, num_samples: int
) -> tuple[LeaseBook, tuple[Lease, ...]]:
    """Return the book after giving `peer` this many samples, and the leases for them.

    The lowest free samples go first, then new ones; one lease for each span that this takes.
    """
    assert num_samples > 0
    available = _merged([*book.free, Span(book.frontier, book.frontier + num_samples)])
    taken, rest = _take(available, num_samples)
    frontier = max(book.frontier, taken[-1].stop)
    leases = tuple(
        Lease(id=LeaseId(id_), start=span.start, stop=span.stop)
        for id_, span in enumerate(taken, start=book.next_id)
    )
    after = replace(
        book,
        next_id=LeaseId(book.next_id + len(leases)),
        frontier=frontier,
        free=tuple(Span(s.start, min(s.stop, frontier)) for s in rest if s.start < frontier),
        held={**book.held, peer: held_by(book, peer) + leases},
    )
    return after, leases


def release(book: LeaseBook, lease_ids: Collection[LeaseId]) -> LeaseBook:
    """Return the book after the samples of these leases became free again.

    Raises:
        ValueError: one of them is not held, or named twice: our bug.
    """
    held, spans = _withdraw(book, lease_ids)
    return replace(book, held=held, free=_merged([*book.free, *spans]))


def commit(book: LeaseBook, lease_ids: Collection[LeaseId]) -> LeaseBook:
    """Return the book after the samples of these leases became part of the model.

    Raises:
        ValueError: one of them is not held, or named twice: our bug.
    """
    held, spans = _withdraw(book, lease_ids)
    return replace(book, held=held, committed=_merged([*book.committed, *spans]))


def held_by(book: LeaseBook, peer: PeerId) -> tuple[Lease, ...]:
    """Return the leases of `peer`, the oldest first."""
    return book.held.get(peer, ())


def holder(book: LeaseBook, lease_id: LeaseId) -> PeerId:
    """Return who holds the lease.

    Raises:
        ValueError: nobody does.
    """
    for peer, leases in book.held.items():
        if any(lease.id == lease_id for lease in leases):
            return peer
    raise ValueError(f"lease {lease_id} is not held")


def _withdraw(
    book: LeaseBook, lease_ids: Collection[LeaseId]
) -> tuple[dict[PeerId, tuple[Lease, ...]], list[Span]]:
    """Return what is held without these leases, and their spans."""
    leaving = set(lease_ids)
    spans = []
    held = {}
    for peer, leases in book.held.items():
        spans += [Span(lease.start, lease.stop) for lease in leases if lease.id in leaving]
        if kept := tuple(lease for lease in leases if lease.id not in leaving):
            held[peer] = kept
    if len(spans) != len(lease_ids):
        raise ValueError(f"not all held, or not all different: leases {sorted(lease_ids)}")
    return held, spans


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
