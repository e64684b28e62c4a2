import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from atoll.data.order import SampleOrder, mixture_pattern, permute

relaxed = settings(deadline=None)  # a busy machine is no failure
weight_lists = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


def shuffled(position, *, size, key, epoch=0):
    return permute(position, np.full_like(position, epoch), size=size, key=key)


@relaxed
@given(st.integers(1, 3000), st.tuples(st.integers(0, 2**64), st.integers(0, 2**40)))
@example(1, (0, 0))
@example(4, (0, 0))
@example(5, (0, 0))
def test_a_permutation_whatever_the_size_and_the_key(size, key):
    image = shuffled(np.arange(size), size=size, key=key)
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(size))


@relaxed
@given(st.integers(2**20, 2**40), st.integers(0, 2**32))
def test_a_large_permutation_stays_inside_and_never_hits_twice(size, seed):
    image = shuffled(np.arange(500), size=size, key=(seed,))
    assert len(set(image.tolist())) == 500
    assert 0 <= image.min() <= image.max() < size


def test_a_permutation_mixes():
    image = shuffled(np.arange(10_000), size=10_000, key=(3,))
    assert abs(np.corrcoef(image, np.arange(10_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.03
    assert (image == np.arange(10_000)).sum() < 8  # one fixed point is expected
    first_half = np.bincount(image[:5000] // 100, minlength=100)
    assert first_half.min() > 25
    assert first_half.max() < 75


def test_the_positions_of_a_permutation_do_not_depend_on_each_other():
    whole = shuffled(np.arange(100), size=100, key=(1, 2))
    assert [int(shuffled(np.array([k]), size=100, key=(1, 2))[0]) for k in range(100)] == [*whole]


@relaxed
@given(weight_lists)
@example([1.0, 1e-6])
@example([1.0, 2.0, 3.0, 1e6])
def test_each_prefix_of_the_mixture_has_its_shares_to_less_than_one(weights):
    pattern = mixture_pattern(weights, num_slots=4096)
    is_source = pattern[:, None] == np.arange(len(weights))
    shares = is_source.mean(axis=0)
    lag = np.cumsum(is_source, axis=0) - np.outer(np.arange(1, 4097), shares)
    assert np.abs(lag).max() < 1
    assert np.abs(shares - np.array(weights) / sum(weights)).max() < (len(weights) + 1) / 4096
    assert (shares > 0).all()


@relaxed
@given(st.floats(0.01, 100))
def test_each_window_of_a_mixture_of_two_has_its_shares_to_one(weight):
    pattern = mixture_pattern([1.0, weight], num_slots=4096)
    lag = np.concatenate(([0.0], np.cumsum(pattern - pattern.mean())))
    assert lag.max() - lag.min() < 1


@relaxed
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(0, 2**32), st.data())
def test_every_source_goes_through_all_its_samples_in_each_epoch(sizes, seed, data):
    weights = data.draw(st.lists(st.floats(0.5, 10), min_size=len(sizes), max_size=len(sizes)))
    order = SampleOrder(sizes, weights=weights, seed=seed)
    source, sample = order.locate(np.arange(3000))
    for k, size in enumerate(sizes):
        mine = sample[source == k]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert len(epochs) > 0
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()


def test_epochs_sources_and_seeds_have_orders_of_their_own():
    order = SampleOrder([64, 64], weights=[1, 1], seed=7)
    source, sample = order.locate(np.arange(256))
    other = SampleOrder([64, 64], weights=[1, 1], seed=8).locate(np.arange(256))[1]
    orders = [sample[source == k].reshape(2, 64) for k in (0, 1)] + [other[:64]]
    assert len({one.tobytes() for one in np.vstack(orders)}) == 5


@relaxed
@given(st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_an_index_is_located_alone_as_among_others(indices):
    order = SampleOrder([1000, 3, 77], weights=[1, 2, 0.3], seed=1)
    together = order.locate(np.array(indices))
    alone = [order.locate(np.array([index])) for index in indices]
    assert [(int(s[0]), int(n[0])) for s, n in alone] == list(
        zip(*map(list, together), strict=True)
    )


def test_the_order_of_a_run_never_changes():
    """Another order would make a peer of another version train on samples that others hold."""
    source, sample = SampleOrder([1000, 20], weights=[3, 1], seed=42).locate(
        np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 4095, 4096, 10**12])
    )
    assert source.tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0]
    assert sample.tolist() == [97, 588, 241, 3, 185, 613, 140, 8, 823, 18, 534, 529]


@pytest.mark.parametrize("stop", [0, 5])
def test_no_index_is_fine(stop):
    source, sample = SampleOrder([3], weights=[1], seed=0).locate(np.arange(stop, stop))
    assert source.shape == sample.shape == (0,)
