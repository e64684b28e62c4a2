import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from atoll.train import merge
from atoll.train.merge import blend_, carry_

weights = arrays(np.float32, 20, elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)


@settings(deadline=None)
@given(weights, weights)
@example(torch.full((20,), 1e-7), torch.full((20,), 3.0))  # lost in single precision
def test_local_weights_stay_where_the_others_did_not_move(local_P, snapshot_P):
    carried_P = local_P.clone()
    carry_(carried_P, global_P=snapshot_P, snapshot_P=snapshot_P)
    assert carried_P.numpy() == pytest.approx(local_P.numpy(), rel=2**-24, abs=1e-13)


@settings(deadline=None)
@given(weights, weights)
def test_without_local_work_it_is_the_global_weights(global_P, snapshot_P):
    carried_P = snapshot_P.clone()
    carry_(carried_P, global_P=global_P, snapshot_P=snapshot_P)
    assert torch.equal(carried_P, global_P)


@settings(deadline=None)
@given(weights, weights)
def test_a_blend_of_nothing_is_the_global_weights(local_P, global_P):
    blend_(local_P, global_P=global_P, alpha=0.0)
    assert torch.equal(local_P, global_P)


@pytest.fixture
def three():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(3, 1001)).astype(np.float32))


@pytest.mark.parametrize("chunk_values", [merge.CHUNK_VALUES, 100])
def test_sums_are_rounded_once_in_chunks_of_any_size(three, chunk_values, monkeypatch):
    monkeypatch.setattr(merge, "CHUNK_VALUES", chunk_values)
    local_P, global_P, snapshot_P = three
    local_N, global_N, snapshot_N = three.double().numpy()
    blended_P = local_P.clone()
    carry_(local_P, global_P=global_P, snapshot_P=snapshot_P)
    blend_(blended_P, global_P=global_P, alpha=0.3)
    assert np.array_equal(local_P, (global_N + (local_N - snapshot_N)).astype(np.float32))
    assert np.array_equal(blended_P, (0.3 * local_N + (1 - 0.3) * global_N).astype(np.float32))
