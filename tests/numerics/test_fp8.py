"""Products in 8 bits: near those in bf16, for large matrices alone, and nothing else is another."""

import pytest
import torch
from msgspec.structs import replace as changed
from tests.numerics.ranked import CPU, FP8

from atoll.errors import ConfigError
from atoll.model.llama import Llama
from atoll.model.presets import PRESETS
from atoll.model.shapes import gains_by_fp8, parameter_specs, require_fp8_shapes
from atoll.train.fp8 import fp8_, require_fp8
from atoll.train.parallel import ALONE
from atoll.train.trainer import build


def names_of_large(model):
    return {
        spec.name.split(".", 2)[2] for spec in parameter_specs(PRESETS[model]) if gains_by_fp8(spec)
    }


def test_keys_and_values_are_too_small_to_gain_and_embeddings_are_not_asked():
    large = {f"{name}.weight" for name in ("attention.q", "attention.out", "ffn.gate", "ffn.up")}
    assert names_of_large("8b") == names_of_large("1b") == large | {"ffn.down.weight"}
    assert names_of_large("small") == set()


def test_parameters_keep_names_order_and_values():
    torch.manual_seed(0)
    plain = Llama(FP8.model)
    converted = Llama(FP8.model)
    converted.load_state_dict(plain.state_dict())
    fp8_(converted, emulated=True)
    before, after = dict(plain.named_parameters()), dict(converted.named_parameters())
    assert list(before) == list(after)
    assert all(type(after[name]) is torch.nn.Parameter for name in after)
    assert all(torch.equal(before[name], after[name]) for name in after)
    kinds = {name: type(module).__name__ for name, module in converted.named_modules()}
    assert kinds["layers.0.ffn.gate"] == "Float8Linear"
    assert kinds["layers.0.attention.k"] == kinds["layers.0.ffn.down"] == kinds["head"] == "Linear"


def test_a_converted_model_writes_and_reads_as_ever():
    """Without autocast, and a token at a time."""
    torch.manual_seed(0)
    model = build(FP8.model, CPU, ranks=ALONE, precision="fp8")
    plain = build(FP8.model, CPU, ranks=ALONE, precision="fp32")
    plain.load_state_dict(model.state_dict())
    tokens_BT = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens_BT), plain(tokens_BT), rtol=0.1, atol=0.1)
        assert model(tokens_BT[:, :1]).dtype == torch.float32


def test_a_device_without_such_products_is_refused():
    with pytest.raises(ConfigError, match="no matrix products in 8 bits: CPU") as caught:
        require_fp8(CPU, PRESETS["1b"], sequence_length=8192)
    assert 'choose "bf16" or "auto"' in caught.value.hint


def test_a_machine_without_the_package_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("atoll.train.fp8.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="takes the package torchao") as caught:
        require_fp8(torch.device("cuda"), PRESETS["1b"], sequence_length=8192)
    assert caught.value.hint == "pip install 'atoll[fp8]'"


def test_shapes_that_do_not_fit_are_refused():
    require_fp8_shapes(PRESETS["intellect-1"], sequence_length=8192)
    with pytest.raises(ConfigError, match="samples have 1000 tokens"):
        require_fp8_shapes(PRESETS["1b"], sequence_length=1000)
    odd = changed(PRESETS["1b"], ffn_width=8200)
    with pytest.raises(ConfigError, match="8200 x 2048"):
        require_fp8_shapes(odd, sequence_length=8192)
    with pytest.raises(ConfigError, match="no matrix of this model is large enough"):
        require_fp8_shapes(PRESETS["small"], sequence_length=512)
