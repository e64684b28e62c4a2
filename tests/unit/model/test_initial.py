import math

import msgspec
import numpy as np
import pytest

from atoll.config import ModelConfig
from atoll.ids import digest_of
from atoll.model.initial import PIECE_VALUES, fill_initial_
from atoll.model.layout import in_model_order, lay_out
from atoll.model.shapes import parameter_specs

CONFIG = ModelConfig(
    vocab_size=64, num_layers=2, width=32, num_heads=4, num_kv_heads=2, ffn_width=48
)
GOLDEN = "9f495a134ac3d7755a0a8e803b581f6f7439c4fe5706b91cedbe33e30732fcc7"


def initial(config=CONFIG, *, seed=7, num_fragments=1):
    layout = lay_out(config, num_fragments)
    params_N = np.empty(layout.num_values, np.float32)
    fill_initial_(params_N, layout, seed=seed)
    return in_model_order(params_N, layout)


def tensors(config, params_N):
    start = 0
    for spec in parameter_specs(config):
        yield spec, params_N[start : start + spec.num_values]
        start += spec.num_values


def test_the_bytes_do_not_change():
    assert digest_of(initial().astype("<f4").tobytes()) == GOLDEN


def test_the_weights_are_the_same_in_any_layout():
    wide = msgspec.structs.replace(CONFIG, vocab_size=2**17, num_layers=3)  # rows of several pieces
    for config, num_fragments in ((CONFIG, 2), (wide, 3)):
        assert np.array_equal(initial(config, num_fragments=num_fragments), initial(config))


def test_each_value_follows_the_formula():
    first = initial(seed=3)[:4].tolist()
    low_then_high = [
        bits
        for raw in np.random.Philox(key=np.array([3, 0], np.uint64)).random_raw(2).tolist()
        for bits in (raw % 2**32, raw >> 32)
    ]
    scale = float(np.float32(math.sqrt(3) * CONFIG.init_std / 2**24))
    odd = [2 * (bits >> 8) + 1 - 2**24 for bits in low_then_high]
    assert first == [float(np.float32(o * scale)) for o in odd]


def test_a_piece_goes_on_where_the_one_before_ended():
    wide = ModelConfig(
        vocab_size=PIECE_VALUES // 8 + 1,
        num_layers=1,
        width=8,
        num_heads=1,
        num_kv_heads=1,
        ffn_width=8,
    )
    raw = np.random.Philox(key=np.array([1, 0], np.uint64)).random_raw(PIECE_VALUES // 2 + 4)
    _, embedding = next(tensors(wide, initial(wide, seed=1)))
    signs = (raw.astype("<u8").view("<u4") >> 31).astype(bool)
    assert np.array_equal(embedding > 0, signs)


def test_seeds_and_tensors_differ_from_each_other():
    blocks = [v[:8].tobytes() for seed in (0, 1) for _, v in tensors(CONFIG, initial(seed=seed))]
    norms = 2 * CONFIG.num_layers + 1
    assert len(set(blocks)) == len(blocks) - 2 * norms + 1


def test_norms_are_one_and_the_rest_has_its_standard_deviation_and_bound():
    config = ModelConfig(
        vocab_size=4096, num_layers=2, width=256, num_heads=4, num_kv_heads=2, ffn_width=256
    )
    for spec, values in tensors(config, initial(config)):
        if spec.name.endswith("norm.weight"):
            assert (values == 1).all()
            continue
        std = 0.01 if spec.name.endswith(("out.weight", "down.weight")) else 0.02
        assert values.std() == pytest.approx(std, rel=0.01)
        assert abs(values.mean()) < 0.03 * std
        assert abs(values).max() == pytest.approx(math.sqrt(3) * std, rel=0.001)
