from hypothesis import given, strategies as st

from atoll.ids import Lease, LeaseId, RoundId
from atoll.peer.work import LocalWork


def lease(id_, start, stop):
    return Lease(id=LeaseId(id_), start=start, stop=stop)


ROUND = R1 = RoundId(1)
R2, R3 = RoundId(2), RoundId(3)
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


def end(work, num_samples):
    """Let training end after so many of the samples in flight."""
    work.advance(num_samples)
    work.end()


def train(work, num_samples):
    begin(work)
    end(work, num_samples)


def begin(work):
    return work.begin(work.num_samples)


@given(some_leases(), st.data())
def test_what_is_left_and_what_is_consumed_are_all_samples_in_order(leases, data):
    work = working(*leases)
    everything = samples((le.start, le.stop) for le in sorted(leases, key=lambda le: le.id))
    consumed = 0
    while consumed < len(everything):
        assert samples(work.left()) == everything[consumed:]
        assert not work.is_whole
        step = data.draw(st.integers(1, len(everything) - consumed))
        assert samples(begin(work)) == everything[consumed:]
        end(work, step)
        consumed += step
    assert work.left() == begin(work) == ()
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
    begin(work)
    assert work.touched() == (1, 2, 3)
    assert not work.is_whole
    end(work, 3)
    assert work.touched() == (1, 2)
    assert work.left() == ((11, 14), (20, 22))


def test_leases_that_come_meanwhile_are_not_in_flight():
    work = working(ONE)
    begin(work)
    assert work.hold([ONE, TWO])
    assert work.touched() == (1,)
    end(work, 4)
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
    begin(work)
    assert not work.hold([TWO])
    end(work, 4)
    assert work.left() == ((10, 14),)
    assert work.touched() == ()


def test_an_untouched_lease_may_go_without_a_loss():
    work = working(ONE, TWO, done=3)
    assert work.hold([ONE, THREE])
    assert work.left() == ((3, 4), (20, 22))


def test_after_the_commit_of_all_that_it_did_the_work_begins_anew():
    work = working(ONE, TWO, done=4)
    assert not work.settle(ROUND, [1])
    assert work.leases == (TWO,)
    assert work.left() == ((10, 14),)
    assert work.touched() == ()
    assert work.hold([TWO, THREE])


def test_a_commit_without_us_leaves_the_work_alone():
    work = working(ONE, TWO, done=5)
    assert work.settle(ROUND, [7, 8])
    assert work.touched() == (1, 2)
    assert work.left() == ((11, 14),)


def test_a_commit_without_us_is_none_of_what_we_offered():
    """The work is as good as before: it is carried, not done again."""
    work = working(ONE, TWO, THREE, done=5)
    assert work.offer(ROUND) == (1,)
    assert work.settle(ROUND, [7])
    assert (work.consumed, work.settled, work.num_offered) == (5, 0, 4)
    work.withdraw(ROUND)
    assert work.offer(R2) == (1,)


def test_when_the_weights_are_the_global_ones_again_the_leases_are_still_to_be_trained_on():
    work = working(ONE, done=3)
    work.clear()
    assert work.left() == ((0, 4),)
    assert work.touched() == ()


def test_without_leases_there_is_no_work():
    work = working()
    assert (work.left(), work.touched(), work.is_whole) == ((), (), False)
    assert (work.consumed, work.in_flight, work.settled) == (0, 0, 0)


# --- while the exchange is under way --------------------------------------------------------------


def test_work_is_trained_on_up_to_a_limit_and_counted_step_by_step():
    work = working(ONE, TWO, THREE, done=2)
    assert work.begin(6) == ((2, 4), (10, 12))
    assert work.touched() == (1, 2)
    work.advance(3)
    assert (work.consumed, work.in_flight) == (5, 1)
    work.end()
    assert (work.consumed, work.in_flight) == (5, 0)
    assert work.begin(5) == work.begin(3) == ()


def test_the_next_contribution_waits_for_whole_leases_that_are_not_offered():
    work = working(ONE, TWO, THREE, done=5)
    # The second lease is begun, so no snapshot is taken before it is done.
    assert [work.round_target(size) for size in (1, 4, 5, 8, 9, 99)] == [8, 8, 8, 8, 10, 10]
    assert work.offer(ROUND) == (1,)
    assert [work.round_target(size) for size in (1, 4, 5, 99)] == [8, 8, 10, 10]
    assert working().round_target(4) == 0


def test_the_next_contribution_waits_for_all_that_is_begun_and_for_no_more():
    work = working(ONE, TWO, THREE, done=4)
    assert work.round_target(4) == 4
    work.begin(6)  # two samples of the second lease are being trained on
    assert work.round_target(4) == 8
    work.advance(2)
    assert work.round_target(4) == 8


def test_what_is_committed_leaves_and_what_came_after_it_stays():
    work = working(ONE, TWO, THREE, done=5)
    assert work.offer(ROUND) == (1,)
    assert work.begin(9) == ((11, 14), (20, 21))
    work.advance(2)
    assert work.settle(ROUND, [1])
    assert (work.leases, work.consumed, work.num_offered) == ((TWO, THREE), 3, 0)
    assert work.settled == 4
    work.advance(2)
    assert work.touched() == (2, 3)
    assert work.left() == ((21, 22),)


def test_what_is_not_committed_is_part_of_the_next_contribution():
    work = working(ONE, TWO, THREE, done=4)
    assert work.offer(ROUND) == (1,)
    train(work, 5)
    work.withdraw(ROUND)
    assert work.offer(ROUND) == (1, 2)


def test_after_a_commit_of_anything_else_than_is_offered_the_work_is_void():
    for committed in ([2], [1, 2], [2, 3]):
        work = working(ONE, TWO, THREE, done=5)
        assert work.offer(ROUND) == (1,)
        assert not work.settle(ROUND, committed)
        assert (work.consumed, work.num_offered) == (0, 0)
        assert work.settled == sum(
            le.stop - le.start for le in (ONE, TWO, THREE) if le.id in committed
        )


# --- several contributions under way --------------------------------------------------------------

FOUR = lease(4, 30, 34)


def test_a_contribution_names_all_that_is_in_it_also_what_rounds_before_it_may_commit():
    work = working(ONE, TWO, THREE, FOUR, done=4)
    assert work.offer(R1) == (1,)
    assert work.round_target(4) == 8
    train(work, 5)
    assert work.offer(R2) == (1, 2)
    assert work.num_offered == 8
    assert [work.round_target(size) for size in (1, 3, 99)] == [10, 14, 14]
    assert work.settle(R1, [1])
    assert work.settle(R2, [2])
    assert (work.leases, work.consumed, work.num_offered) == ((THREE, FOUR), 1, 0)


def test_all_is_offered_when_no_lease_is_begun_that_no_contribution_has():
    """Whoever is to leave then may: it would begin nothing that is lost."""
    work = working(ONE, TWO, THREE)
    assert work.is_all_offered, "there is nothing"
    train(work, 5)
    work.offer(R1)
    assert not work.is_all_offered, "a sample of the second lease is in the weights"
    work.end()
    train(work, 3)
    assert work.offer(R2) == (1, 2)
    assert work.is_all_offered
    begin(work)
    assert not work.is_all_offered, "the third may be in the weights at any moment"


def test_one_lease_is_worked_on_at_a_time():
    work = working(ONE, TWO, THREE)
    for stop in (4, 8, 10):
        assert work.next_stop() == stop
        work.begin(stop)
        end(work, stop - work.consumed)
    assert work.next_stop() == 10, "there is no more"
    assert LocalWork().next_stop() == 0


def test_what_one_round_has_not_committed_the_next_one_may():
    work = working(ONE, TWO, THREE, FOUR, done=4)
    assert work.offer(R1) == (1,)
    train(work, 4)
    assert work.offer(R2) == (1, 2)
    train(work, 1)
    work.withdraw(R1)
    assert work.num_offered == 8
    assert work.settle(R2, [1, 2])
    assert (work.leases, work.consumed) == ((THREE, FOUR), 1)
    train(work, 1)
    assert work.offer(R3) == (3,)


def test_a_commit_of_less_than_is_left_of_a_contribution_voids_the_work():
    work = working(ONE, TWO, THREE, done=8)
    work.offer(R1)
    work.withdraw(R1)
    assert work.offer(R2) == (1, 2)
    assert not work.settle(R2, [2])
    assert (work.leases, work.consumed) == ((ONE, THREE), 0)


def test_where_everything_is_offered_there_is_nothing_to_wait_for():
    work = working(ONE, done=4)
    assert work.offer(R1) == (1,)
    assert work.round_target(4) == 0
    assert work.offer(R2) == ()
    assert R2 not in work.offers


def test_a_contribution_whose_trainer_died_stays_offered_and_its_commit_voids_the_new_work():
    work = working(ONE, TWO, THREE, done=8)
    work.offers[R1], work.offers[R2] = (1,), (2,)
    work.clear()
    assert work.lost == {R1, R2}
    train(work, 9)
    assert work.offer(R3) == ()
    train(work, 1)
    assert work.offer(R3) == (1, 2, 3)
    work.withdraw(R1)
    assert not work.settle(R2, [2])
    assert (work.leases, work.consumed, work.lost) == ((ONE, THREE), 0, {R3})
    work.forget_offers()
    assert (work.offers, work.lost) == ({}, set())


def test_a_contribution_is_made_anew_for_the_same_round():
    work = working(ONE, TWO, done=4)
    assert work.offer(R1) == (1,)
    work.clear()
    train(work, 8)
    assert work.offer(R1) == (1, 2)
    assert not work.lost
    assert work.settle(R1, [1, 2])


actions = st.lists(
    st.tuples(
        st.sampled_from(["grant", "train", "step", "offer", "commit", "withdraw", "die"]),
        st.integers(1, 9),
    ),
    max_size=60,
)


@given(actions, st.integers(1, 3))
def test_no_sample_is_committed_twice_and_none_is_lost(actions, in_flight):
    """`trained` is what the local weights contain that is not committed, in any order."""
    work, granted, trained, committed = LocalWork(), [], [], []
    flying, open_rounds, round_id = [], [], 0
    for action, size in actions:
        match action:
            case "grant":
                start = 100 * len(granted)
                granted.append(lease(len(granted) + 1, start, start + size))
                assert work.hold([*work.leases, granted[-1]])
            case "train":
                work.end()
                flying = samples(work.begin(work.consumed + size))
            case "step":
                step = flying[:size]
                trained, flying = trained + step, flying[size:]
                work.advance(len(step))
            case "offer" if len(open_rounds) < in_flight:
                round_id += 1
                if work.offer(RoundId(round_id)):
                    open_rounds.append(RoundId(round_id))
            case "commit" if open_rounds:
                first = open_rounds.pop(0)
                offered, was_lost = work.offers[first], first in work.lost
                assert work.settle(first, offered) == (not was_lost)
                committed.extend(offered)
                new = samples((le.start, le.stop) for le in granted if le.id in offered)
                trained = [] if was_lost else [s for s in trained if s not in new]
                flying = [] if was_lost else flying
                assert was_lost or not set(new) & set(flying)
            case "withdraw" if open_rounds:
                work.withdraw(open_rounds.pop(0))
            case "die":
                work.clear()
                trained, flying = [], []
        check(work, granted, trained, committed)
        assert set(work.offers) == set(open_rounds) >= work.lost


def check(work, granted, trained, committed):
    held = [le for le in granted if le.id not in committed]
    assert list(work.leases) == held
    everything = samples((le.start, le.stop) for le in held)
    assert trained == everything[: len(trained)], "in order, none twice, none left out"
    assert work.consumed == len(trained)
    assert len(set(committed)) == len(committed)
    offers = [lease_id for ids in work.offers.values() for lease_id in ids]
    assert len(set(offers)) == len(offers)
    assert set(offers) <= {le.id for le in held}
