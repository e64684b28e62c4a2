from hypothesis import example, given, settings, strategies as st

from atoll.outer.layout import (
    LARGEST_SLICE,
    MANY_SLICES,
    MOST_SLICES,
    SLICE_STEP,
    SMALL_SLICE,
    SMALLEST_SLICE,
    slice_bounds,
)


@settings(deadline=None)
@given(st.integers(0, 2**40))
@example(1)
@example(SMALLEST_SLICE)
@example(16 * SMALLEST_SLICE)
@example(MANY_SLICES * SMALL_SLICE)
@example(MANY_SLICES * SMALL_SLICE + 1)
@example(MOST_SLICES * SMALL_SLICE + 1)
@example(MOST_SLICES * LARGEST_SLICE + 1)
def test_every_value_is_in_exactly_one_slice_of_a_sensible_size(num_values):
    bounds = slice_bounds(num_values)
    assert [0, *(stop for _, stop in bounds)] == [*(start for start, _ in bounds), num_values]
    for start, stop in bounds[:-1]:
        assert (stop - start) % SLICE_STEP == 0
        assert SMALLEST_SLICE <= stop - start <= LARGEST_SLICE
        assert stop - start == bounds[0][1]
    assert all(0 < stop - start <= bounds[0][1] for start, stop in bounds)
    if num_values >= 16 * SMALLEST_SLICE:
        assert len(bounds) >= 16
    if MANY_SLICES * SMALL_SLICE <= num_values <= MOST_SLICES * LARGEST_SLICE:
        assert MANY_SLICES <= len(bounds) <= MOST_SLICES
        assert bounds[0][1] >= SMALL_SLICE


def test_slices_of_known_sizes_do_not_change():
    # A change here is another protocol: peers of one run must cut alike.
    assert slice_bounds(20_000) == ((0, 16_384), (16_384, 20_000))
    assert slice_bounds(1_300_000)[:2] == ((0, 40_960), (40_960, 81_920))
    assert slice_bounds(20_000_000)[:2] == ((0, 159_744), (159_744, 319_488))
    assert len(slice_bounds(10_200_000_000)) == 608
