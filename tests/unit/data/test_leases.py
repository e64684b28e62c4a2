from copy import deepcopy
from itertools import pairwise

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll.data.leases import LeaseBook, Span
from atoll.ids import Lease, LeaseId, PeerId

A, B, C = (PeerId(letter * 32) for letter in "abc")


def spans(leases: tuple[Lease, ...]) -> list[tuple[int, int]]:
    return [(lease.start, lease.stop) for lease in leases]


def ids(*leases: Lease) -> list[LeaseId]:
    return [lease.id for lease in leases]


def test_new_samples_follow_each_other():
    book = LeaseBook()
    (first,) = book.grant(A, num_samples=10)
    (second,) = book.grant(B, num_samples=5)
    assert spans((first, second)) == [(0, 10), (10, 15)]
    assert book.held == {A: (first,), B: (second,)}
    assert book.held_by(C) == ()


def test_free_samples_are_granted_before_new_ones_the_lowest_first():
    book = LeaseBook()
    (first,) = book.grant(A, num_samples=10)
    (second,) = book.grant(B, num_samples=10)
    (third,) = book.grant(A, num_samples=10)
    book.release(A, ids(first, third))
    assert book.free == (Span(0, 10), Span(20, 30))
    assert spans(book.grant(C, num_samples=13)) == [(0, 10), (20, 23)]
    leases = book.grant(C, num_samples=9)
    assert spans(leases) == [(23, 32)], "free samples and new ones that touch are one lease"
    assert book.free == ()
    assert book.frontier == 32
    assert book.held_by(B) == (second,)


def test_what_is_released_in_parts_is_granted_whole():
    book = LeaseBook()
    (first,) = book.grant(A, num_samples=4)
    (second,) = book.grant(B, num_samples=4)
    book.release(B, ids(second))
    book.release(A, ids(first))
    assert book.free == (Span(0, 8),)
    assert spans(book.grant(C, num_samples=8)) == [(0, 8)]


def test_committed_samples_are_kept_as_merged_spans():
    book = LeaseBook()
    for _ in range(100):
        (first,) = book.grant(A, num_samples=3)
        (second,) = book.grant(B, num_samples=2)
        book.commit({B: ids(second), A: ids(first)})
    assert book.committed == (Span(0, 500),)
    assert book.held == {}


def test_a_lease_that_the_peer_does_not_hold_is_a_bug_and_changes_nothing():
    book = LeaseBook()
    (lease,) = book.grant(A, num_samples=4)
    (other,) = book.grant(B, num_samples=4)
    before = deepcopy(book)
    for wrong in ([*ids(lease), LeaseId(99)], ids(lease, lease), ids(lease, other)):
        with pytest.raises(ValueError, match="does not hold lease"):
            book.release(A, wrong)
        with pytest.raises(ValueError, match="does not hold lease"):
            book.commit({B: ids(other), A: wrong})
        assert book == before
    book.commit({A: ids(lease)})
    with pytest.raises(ValueError, match="does not hold lease"):
        book.commit({A: ids(lease)})


class Accounting(RuleBasedStateMachine):
    """Compares the book with a list that says of every sample who has it."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook()
        self.state: list[object] = []  # of each sample: "free", "committed", or its lease's id
        self.ids_seen: set[LeaseId] = set()

    def held_ids(self) -> list[LeaseId]:
        return sorted(lease.id for leases in self.book.held.values() for lease in leases)

    @rule(peer=st.sampled_from([A, B, C]), num_samples=st.integers(1, 12))
    def grant(self, peer, num_samples):
        free = [sample for sample, state in enumerate(self.state) if state == "free"]
        num_new = max(0, num_samples - len(free))
        new = range(len(self.state), len(self.state) + num_new)
        self.state.extend("free" for _ in new)
        leases = self.book.grant(peer, num_samples=num_samples)
        granted = [sample for lease in leases for sample in range(lease.start, lease.stop)]
        assert granted == [*free, *new][:num_samples]
        assert all(a.stop < b.start for a, b in pairwise(leases))
        for lease in leases:
            assert lease.id not in self.ids_seen
            assert lease in self.book.held_by(peer)
            self.ids_seen.add(lease.id)
            self.state[lease.start : lease.stop] = [lease.id] * (lease.stop - lease.start)

    @precondition(lambda self: self.held_ids())
    @rule(data=st.data(), commits=st.booleans())
    def commit_or_release(self, data, commits):
        some = data.draw(st.lists(st.sampled_from(self.held_ids()), unique=True, max_size=4))
        by_peer = {
            peer: [lease.id for lease in held if lease.id in some]
            for peer, held in self.book.held.items()
        }
        if commits:
            self.book.commit(by_peer)
        else:
            for peer, lease_ids in by_peer.items():
                self.book.release(peer, lease_ids)
        after = "committed" if commits else "free"
        self.state = [after if state in some else state for state in self.state]

    @invariant()
    def every_sample_is_accounted_for_exactly_once(self):
        found: list[object] = [None] * self.book.frontier
        held = [
            (lease.start, lease.stop, lease.id)
            for leases in self.book.held.values()
            for lease in leases
        ]
        free = [(*span, "free") for span in self.book.free]
        committed = [(*span, "committed") for span in self.book.committed]
        for start, stop, state in held + free + committed:
            assert start < stop
            assert found[start:stop] == [None] * (stop - start), "counted twice"
            found[start:stop] = [state] * (stop - start)
        assert found == self.state

    @invariant()
    def spans_are_merged(self):
        for kept in (self.book.free, self.book.committed):
            assert all(a.stop < b.start for a, b in pairwise(kept))


Accounting.TestCase.settings = settings(deadline=None, stateful_step_count=30, max_examples=60)
TestAccounting = Accounting.TestCase
