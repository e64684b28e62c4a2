from hypothesis import example, given, settings, strategies as st

from atoll.outer.layout import MAX_SLICE, MIN_SLICE, SLICE_STEP, Entry, Layout, slice_bounds

shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=8)


def test_parameters_lie_one_after_the_other():
    layout = Layout.of([("a", (2, 3)), ("b", ()), ("c", (4,))])
    assert layout.entries == (
        Entry("a", (2, 3), 0, 6),
        Entry("b", (), 6, 7),
        Entry("c", (4,), 7, 11),
    )
    assert layout.num_values == 11


@settings(deadline=None)
@given(shapes, st.integers(1, 5))
def test_fragments_hold_every_value_once_and_are_of_one_size(shapes, num):
    layout = Layout.of([(str(index), shape) for index, shape in enumerate(shapes)])
    fragments = layout.fragments(num)
    assert [fragment.index for fragment in fragments] == list(range(num))
    assert [0, *(fragment.stop for fragment in fragments)] == [
        *(fragment.start for fragment in fragments),
        layout.num_values,
    ]
    sizes = [fragment.stop - fragment.start for fragment in fragments]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(st.integers(0, 2**40))
@example(1)
@example(MIN_SLICE)
@example(MIN_SLICE + 1)
@example(64 * MIN_SLICE + 1)
@example(64 * MAX_SLICE + 1)
def test_every_value_is_in_exactly_one_slice_of_a_sensible_size(num_values):
    bounds = slice_bounds(num_values)
    assert [0, *(stop for _, stop in bounds)] == [*(start for start, _ in bounds), num_values]
    for start, stop in bounds[:-1]:
        assert (stop - start) % SLICE_STEP == 0
        assert MIN_SLICE <= stop - start <= MAX_SLICE
        assert stop - start == bounds[0][1]
    assert all(0 < stop - start <= bounds[0][1] for start, stop in bounds)
    if 64 * MIN_SLICE <= num_values <= 64 * MAX_SLICE:
        assert 32 < len(bounds) <= 64


def test_slices_of_known_sizes_do_not_change():
    # A change here is another protocol: peers of one run must cut alike.
    assert slice_bounds(100_000) == ((0, 65_536), (65_536, 100_000))
    assert slice_bounds(10_000_000)[:2] == ((0, 159_744), (159_744, 319_488))
    assert len(slice_bounds(10_200_000_000)) == 608
