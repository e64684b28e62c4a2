from hypothesis import given, strategies as st

from atoll.ids import Lease, LeaseId
from atoll.peer.work import LocalWork


def lease(id_, start, stop):
    return Lease(id=LeaseId(id_), start=start, stop=stop)


ONE, TWO, THREE = lease(1, 0, 4), lease(2, 10, 14), lease(3, 20, 22)


@st.composite
def some_leases(draw):
    """Leases of different ids that do not overlap, in any order."""
    sizes = draw(st.lists(st.integers(1, 9), max_size=6))
    leases = [lease(k + 1, 100 * k, 100 * k + size) for k, size in enumerate(sizes)]
    return draw(st.permutations(leases))


def samples(spans):
    return [sample for start, stop in spans for sample in range(start, stop)]


def working(*leases, done=0):
    """Return work with these leases, of which so many samples are trained on."""
    work = LocalWork()
    work.hold(leases)
    train(work, done)
    return work


def train(work, num_samples):
    work.begin()
    work.end(num_samples)


@given(some_leases(), st.data())
def test_what_is_left_and_what_is_consumed_are_all_samples_in_order(leases, data):
    work = working(*leases)
    everything = samples((le.start, le.stop) for le in sorted(leases, key=lambda le: le.id))
    consumed = 0
    while consumed < len(everything):
        assert samples(work.left()) == everything[consumed:]
        assert not work.is_whole
        step = data.draw(st.integers(1, len(everything) - consumed))
        assert samples(work.begin()) == everything[consumed:]
        work.end(step)
        consumed += step
    assert work.left() == work.begin() == ()
    assert work.is_whole == bool(everything)
    assert work.touched() == tuple(sorted(le.id for le in leases))


@given(some_leases(), st.integers(0, 60))
def test_a_lease_is_touched_if_one_of_its_samples_is_consumed(leases, consumed):
    work = working(*leases, done=min(consumed, sum(le.stop - le.start for le in leases)))
    left = set(samples(work.left()))
    for le in leases:
        touched = not left.issuperset(range(le.start, le.stop))
        assert (le.id in work.touched()) == touched


def test_what_is_being_trained_on_is_touched_until_it_is_known_how_far_it_came():
    work = working(ONE, TWO, THREE, done=2)
    assert work.touched() == (1,)
    work.begin()
    assert work.touched() == (1, 2, 3)
    assert not work.is_whole
    work.end(3)
    assert work.touched() == (1, 2)
    assert work.left() == ((11, 14), (20, 22))


def test_leases_that_come_meanwhile_are_not_in_flight():
    work = working(ONE)
    work.begin()
    assert work.hold([ONE, TWO])
    assert work.touched() == (1,)
    work.end(4)
    assert work.left() == ((10, 14),)


def test_more_leases_are_more_work_after_what_is_done():
    work = working(ONE, done=4)
    assert work.is_whole
    assert work.hold([TWO, ONE])
    assert work.left() == ((10, 14),)
    train(work, 3)
    assert work.hold([ONE, TWO, THREE])
    assert work.left() == ((13, 14), (20, 22))
    assert work.touched() == (1, 2)


def test_work_on_a_lease_that_is_not_held_any_more_is_void():
    work = working(ONE, TWO, done=5)
    assert not work.hold([TWO, THREE])
    assert work.consumed == 0
    assert work.left() == ((10, 14), (20, 22))


def test_work_that_is_void_stays_void_when_its_training_ends():
    work = working(ONE)
    work.begin()
    assert not work.hold([TWO])
    work.end(4)
    assert work.left() == ((10, 14),)
    assert work.touched() == ()


def test_an_untouched_lease_may_go_without_a_loss():
    work = working(ONE, TWO, done=3)
    assert work.hold([ONE, THREE])
    assert work.left() == ((3, 4), (20, 22))


def test_after_the_commit_of_its_leases_the_work_begins_anew():
    work = working(ONE, TWO, done=4)
    work.settle([1])
    assert work.leases == (TWO,)
    assert work.left() == ((10, 14),)
    assert work.touched() == ()
    assert work.hold([TWO, THREE])


def test_a_commit_without_us_leaves_the_work_alone():
    work = working(ONE, TWO, done=5)
    work.settle([7, 8])
    assert work.touched() == (1, 2)
    assert work.left() == ((11, 14),)


def test_when_the_weights_are_the_global_ones_again_the_leases_are_still_to_be_trained_on():
    work = working(ONE, done=3)
    work.clear()
    assert work.left() == ((0, 4),)
    assert work.touched() == ()


def test_without_leases_there_is_no_work():
    work = working()
    assert (work.left(), work.touched(), work.is_whole) == ((), (), False)
