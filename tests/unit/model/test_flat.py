import numpy as np
import pytest
import torch

from atoll.config import ModelConfig
from atoll.model.flat import load_flat_, store_flat_
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters, parameter_specs

CONFIG = ModelConfig(
    vocab_size=16, num_layers=2, width=8, num_heads=2, num_kv_heads=1, ffn_width=12
)
COUNT = num_parameters(CONFIG)


def test_each_value_arrives_at_its_place_and_comes_back():
    params_N = np.arange(COUNT, dtype=np.float32)
    model = Llama(CONFIG)
    load_flat_(model, params_N)
    start = 0
    for spec, parameter in zip(parameter_specs(CONFIG), model.parameters(), strict=True):
        values = params_N[start : start + spec.num_values].reshape(spec.shape)
        assert np.array_equal(parameter.detach().numpy(), values)
        start += spec.num_values
    out_N = np.empty_like(params_N)
    store_flat_(model, out_N)
    assert np.array_equal(out_N, params_N)


def test_the_model_keeps_memory_of_its_own():
    params_N = np.ones(COUNT, np.float32)
    model = Llama(CONFIG)
    load_flat_(model, params_N)
    params_N.fill(2)
    assert all((p == 1).all() for p in model.parameters())


def test_read_only_parameters_can_be_loaded():
    params_N = np.frombuffer(np.full(COUNT, 3, np.float32).tobytes(), np.float32)
    model = Llama(CONFIG)
    load_flat_(model, params_N)
    assert all((p == 3).all() for p in model.parameters())


def test_a_model_of_another_dtype_converts():
    model = Llama(CONFIG).to(torch.bfloat16)
    load_flat_(model, np.full(COUNT, 1.0, np.float32))
    out_N = np.zeros(COUNT, np.float32)
    store_flat_(model, out_N)
    assert (out_N == 1).all()


@pytest.mark.parametrize(
    "wrong", [np.zeros(COUNT + 1, np.float32), np.zeros(COUNT, np.float64)], ids=["long", "fp64"]
)
def test_another_vector_is_a_bug(wrong):
    with pytest.raises(AssertionError, match="a flat vector"):
        load_flat_(Llama(CONFIG), wrong)
