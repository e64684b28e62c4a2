import numpy as np
import pytest
import torch

from atoll.config import ModelConfig
from atoll.model.flat import load_flat_, store_flat_, views
from atoll.model.layout import in_model_order, lay_out
from atoll.model.llama import Llama

CONFIG = ModelConfig(
    vocab_size=16, num_layers=4, width=8, num_heads=2, num_kv_heads=1, ffn_width=12
)
ONE = lay_out(CONFIG)
COUNT = ONE.num_values

layouts = pytest.mark.parametrize(
    "layout", [lay_out(CONFIG, num) for num in (1, 2, 3, 4)], ids=["F1", "F2", "F3", "F4"]
)


@layouts
def test_each_value_arrives_at_its_place_and_comes_back(layout):
    params_N = np.arange(COUNT, dtype=np.float32)
    model = Llama(CONFIG)
    load_flat_(model, params_N, layout)
    in_model = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    assert np.array_equal(in_model, in_model_order(params_N, layout))
    out_N = np.empty_like(params_N)
    store_flat_(model, out_N, layout)
    assert np.array_equal(out_N, params_N)


@layouts
def test_views_of_a_part_are_that_part_of_the_whole(layout):
    model = Llama(CONFIG)
    params_N = np.arange(COUNT, dtype=np.float32)
    load_flat_(model, params_N, layout)
    parts = [(f.start, f.stop) for f in layout.fragments]
    for start, stop in [*parts, (3, COUNT - 5), (200, 201), (50, 50)]:
        found = list(views(model, layout, start=start, stop=stop))
        joined = [value for view, _ in found for value in view.tolist()]
        assert joined == params_N[start:stop].tolist()
        assert all(np.array_equal(view, params_N[place]) for view, place in found)


def test_a_view_is_the_memory_of_the_model():
    model = Llama(CONFIG)
    for view, _ in views(model, lay_out(CONFIG, 2), start=0, stop=COUNT):
        view.fill_(3)
    assert all((p == 3).all() for p in model.parameters())


def test_the_model_keeps_memory_of_its_own():
    params_N = np.ones(COUNT, np.float32)
    model = Llama(CONFIG)
    load_flat_(model, params_N, ONE)
    params_N.fill(2)
    assert all((p == 1).all() for p in model.parameters())


def test_read_only_parameters_can_be_loaded():
    params_N = np.frombuffer(np.full(COUNT, 3, np.float32).tobytes(), np.float32)
    model = Llama(CONFIG)
    load_flat_(model, params_N, ONE)
    assert all((p == 3).all() for p in model.parameters())


def test_a_model_of_another_dtype_converts():
    model = Llama(CONFIG).to(torch.bfloat16)
    load_flat_(model, np.full(COUNT, 1.0, np.float32), ONE)
    out_N = np.zeros(COUNT, np.float32)
    store_flat_(model, out_N, ONE)
    assert (out_N == 1).all()


@pytest.mark.parametrize(
    "wrong", [np.zeros(COUNT + 1, np.float32), np.zeros(COUNT, np.float64)], ids=["long", "fp64"]
)
def test_another_vector_is_a_bug(wrong):
    with pytest.raises(AssertionError, match="a flat vector"):
        load_flat_(Llama(CONFIG), wrong, ONE)
