import pytest

from atoll.model.accounting import count_parameters, flops_per_token
from atoll.model.presets import PRESETS


def test_an_untied_head_counts_as_embedding():
    counts = count_parameters(PRESETS["intellect-1"])
    assert counts.embedding == 2 * 128_256 * 4096
    assert counts.embedding + counts.non_embedding == counts.total == 10_211_381_248
    assert count_parameters(PRESETS["1b"]).embedding == 128_256 * 2048


@pytest.mark.parametrize("name", ["tiny", "8b"])
def test_flops_are_six_for_each_weight_of_each_product_and_attention(name):
    config = PRESETS[name]
    kv_width = config.num_kv_heads * config.head_width
    layer = (2 * config.width + 2 * kv_width + 3 * config.ffn_width) * config.width
    weights = config.num_layers * layer + config.vocab_size * config.width
    attention = 12 * config.num_layers * config.width
    assert flops_per_token(config, sequence_length=0) == 6 * weights
    assert flops_per_token(config, sequence_length=100) == 6 * weights + 100 * attention
