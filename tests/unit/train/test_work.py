from hypothesis import given, strategies as st

from atoll.train.work import cut_into_steps, num_samples

spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 30)).map(lambda pair: (pair[0], sum(pair)))
)


def samples(spans):
    return [sample for start, stop in spans for sample in range(start, stop)]


@given(spans, st.integers(1, 20))
def test_every_sample_is_in_one_step_and_the_order_stays(spans, batch_sequences):
    steps = list(cut_into_steps(spans, batch_sequences=batch_sequences))
    assert [s for step in steps for s in samples(step)] == samples(spans)
    sizes = [num_samples(step) for step in steps]
    assert all(size == batch_sequences for size in sizes[:-1])
    assert all(0 < size <= batch_sequences for size in sizes)


def test_a_step_may_begin_in_one_span_and_end_in_the_next():
    steps = list(cut_into_steps([(0, 5), (20, 24)], batch_sequences=4))
    assert steps == [((0, 4),), ((4, 5), (20, 23)), ((23, 24),)]
