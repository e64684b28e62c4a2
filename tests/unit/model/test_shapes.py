import msgspec
import pytest
import torch

from atoll.model.llama import Llama
from atoll.model.presets import PRESETS
from atoll.model.shapes import num_parameters, parameter_specs

MILLION = 10**6


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tied", [False, True])
def test_names_shapes_and_order_are_those_of_the_model(name, tied):
    config = msgspec.structs.replace(PRESETS[name], tied_embeddings=tied)
    with torch.device("meta"):
        model = Llama(config)
    built = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert [(spec.name, spec.shape) for spec in parameter_specs(config)] == built
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("tiny", 1.3),
        ("small", 15.7),
        ("150m", 151.0),
        ("1b", 1235.8),
        ("8b", 8030.3),
        ("intellect-1", 10_211.4),
    ],
)
def test_presets_are_as_large_as_they_say(name, millions):
    assert num_parameters(PRESETS[name]) / MILLION == pytest.approx(millions, abs=0.05)
