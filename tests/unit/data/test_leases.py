from itertools import pairwise

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll.data.leases import LeaseBook, Span, commit, grant, held_by, holder, release
from atoll.ids import Lease, LeaseId, PeerId

A, B, C = (PeerId(letter * 32) for letter in "abc")


def spans(leases: tuple[Lease, ...]) -> list[tuple[int, int]]:
    return [(lease.start, lease.stop) for lease in leases]


def ids(*leases: Lease) -> list[LeaseId]:
    return [lease.id for lease in leases]


def test_new_samples_follow_each_other():
    book, (first,) = grant(LeaseBook(), A, num_samples=10)
    book, (second,) = grant(book, B, num_samples=5)
    assert spans((first, second)) == [(0, 10), (10, 15)]
    assert held_by(book, A) == (first,)
    assert held_by(book, C) == ()
    assert holder(book, second.id) == B


def test_free_samples_are_granted_before_new_ones_the_lowest_first():
    book, (first,) = grant(LeaseBook(), A, num_samples=10)
    book, (second,) = grant(book, B, num_samples=10)
    book, (third,) = grant(book, A, num_samples=10)
    book = release(book, ids(first, third))
    assert book.free == (Span(0, 10), Span(20, 30))
    book, leases = grant(book, C, num_samples=13)
    assert spans(leases) == [(0, 10), (20, 23)]
    book, leases = grant(book, C, num_samples=9)
    assert spans(leases) == [(23, 32)], "free samples and new ones that touch are one lease"
    assert book.free == ()
    assert book.frontier == 32
    assert held_by(book, B) == (second,)


def test_what_is_released_in_parts_is_granted_whole():
    book, (first,) = grant(LeaseBook(), A, num_samples=4)
    book, (second,) = grant(book, B, num_samples=4)
    book = release(release(book, ids(second)), ids(first))
    assert book.free == (Span(0, 8),)
    assert spans(grant(book, C, num_samples=8)[1]) == [(0, 8)]


def test_committed_samples_are_kept_as_merged_spans():
    book = LeaseBook()
    for _ in range(100):
        book, (first,) = grant(book, A, num_samples=3)
        book, (second,) = grant(book, B, num_samples=2)
        book = commit(book, ids(second, first))
    assert book.committed == (Span(0, 500),)
    assert book.held == {}


def test_a_lease_that_nobody_holds_is_a_bug_and_changes_nothing():
    book, (lease,) = grant(LeaseBook(), A, num_samples=4)
    committed = commit(book, ids(lease))
    for change in (commit, release):
        with pytest.raises(ValueError, match="not all held"):
            change(committed, ids(lease))
        with pytest.raises(ValueError, match="not all held"):
            change(book, [*ids(lease), LeaseId(99)])
        with pytest.raises(ValueError, match="not all different"):
            change(book, ids(lease, lease))
    with pytest.raises(ValueError, match=f"lease {lease.id} is not held"):
        holder(committed, lease.id)
    assert held_by(book, A) == (lease,)


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
        self.book, leases = grant(self.book, peer, num_samples=num_samples)
        granted = [sample for lease in leases for sample in range(lease.start, lease.stop)]
        assert granted == [*free, *new][:num_samples]
        assert all(a.stop < b.start for a, b in pairwise(leases))
        for lease in leases:
            assert lease.id not in self.ids_seen
            assert holder(self.book, lease.id) == peer
            assert lease in held_by(self.book, peer)
            self.ids_seen.add(lease.id)
            self.state[lease.start : lease.stop] = [lease.id] * (lease.stop - lease.start)

    @precondition(lambda self: self.held_ids())
    @rule(data=st.data(), commits=st.booleans())
    def commit_or_release(self, data, commits):
        some = data.draw(st.lists(st.sampled_from(self.held_ids()), unique=True, max_size=4))
        self.book = (commit if commits else release)(self.book, some)
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
