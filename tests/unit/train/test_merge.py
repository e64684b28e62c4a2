import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from hypothesis.extra.numpy import arrays

from atoll.train import merge
from atoll.train.merge import carry_

weights = arrays(np.float32, 20, elements=st.floats(-100, 100, width=32))


@given(weights, weights)
@example(np.full(20, 1e-7, np.float32), np.full(20, 3.0, np.float32))  # lost in single precision
def test_local_weights_stay_where_the_others_did_not_move(local_N, reference_N):
    carried_N = local_N.copy()
    carry_(carried_N, global_N=reference_N, reference_N=reference_N)
    assert carried_N == pytest.approx(local_N, rel=2**-24, abs=1e-13)


@given(weights, weights)
def test_without_local_work_it_is_the_global_weights(global_N, reference_N):
    carried_N = reference_N.copy()
    carry_(carried_N, global_N=global_N, reference_N=reference_N)
    assert np.array_equal(carried_N, global_N)


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    local_N, global_N, reference_N = rng.normal(size=(3, 1001)).astype(np.float32)
    expected = (global_N.astype(float) + (local_N.astype(float) - reference_N)).astype(np.float32)
    monkeypatch.setattr(merge, "CHUNK_VALUES", 100)
    carry_(local_N, global_N=global_N, reference_N=reference_N)
    assert np.array_equal(local_N, expected)
