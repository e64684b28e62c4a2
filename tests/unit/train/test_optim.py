import resource

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.numpy import load_file, save_file

from atoll.errors import DamagedError, RunError
from atoll.model.llama import Llama
from atoll.train.optim import copy_moments, load_optimizer_, make_optimizer, save_optimizer

NUM_STEPS = 3


@pytest.fixture(scope="module", params=["adamw", "muon"])
def config(request, config):
    return replace(config, inner=replace(config.inner, optimizer=request.param))


def trained(config, *, num_steps=NUM_STEPS):
    torch.manual_seed(0)
    model = Llama(config.model)
    optimizer = make_optimizer(model, config.inner)
    for _ in range(num_steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("optim") / "optimizer.safetensors"
    model, optimizer = trained(config)
    save_optimizer(path, copy_moments(optimizer, model=model), num_steps=NUM_STEPS)
    return path


def test_matrices_decay_and_gains_do_not(config):
    model = Llama(config.model)
    decay = {
        id(p): group["weight_decay"]
        for group in make_optimizer(model, config.inner).param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else config.inner.weight_decay), name


def test_a_loaded_state_goes_on_bit_for_bit(config, saved):
    model, optimizer = trained(config)
    resumed = Llama(config.model)
    resumed.load_state_dict(model.state_dict())
    fresh = make_optimizer(resumed, config.inner)
    assert load_optimizer_(saved, fresh, model=resumed) == NUM_STEPS
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    optimizer.step()
    fresh.step()
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_fresh_state_loads_as_one(config, tmp_path):
    model, optimizer = trained(config, num_steps=0)
    save_optimizer(tmp_path / "fresh", copy_moments(optimizer, model=model), num_steps=0)
    model, optimizer = trained(config)
    assert load_optimizer_(tmp_path / "fresh", optimizer, model=model) == 0
    assert not optimizer.state


def test_names_are_those_of_the_parameters(config, saved):
    expected = []
    for name, parameter in Llama(config.model).named_parameters():
        by_muon = config.inner.optimizer == "muon" and "layers" in name and parameter.ndim == 2
        moments = ("momentum_buffer",) if by_muon else ("exp_avg", "exp_avg_sq")
        expected += [f"{moment}.{name}" for moment in moments]
    assert sorted(load_file(saved)) == sorted(expected)


def test_the_state_of_another_optimizer_is_refused(config, saved):
    other = {"adamw": "muon", "muon": "adamw"}[config.inner.optimizer]
    model, optimizer = trained(replace(config, inner=replace(config.inner, optimizer=other)))
    with pytest.raises(DamagedError, match="belongs to another model"):
        load_optimizer_(saved, optimizer, model=model)
    assert optimizer.state


@pytest.mark.parametrize("place", [0.0, 0.001, 0.02, 0.3, 0.6, 0.9999])
def test_one_flipped_bit_is_noticed_and_changes_nothing(config, saved, tmp_path, place):
    damaged = bytearray(saved.read_bytes())
    damaged[int(place * len(damaged))] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    model, optimizer = trained(config)
    before = copy_moments(optimizer, model=model)
    with pytest.raises(DamagedError, match=r"not a state of the optimizer: .*damaged") as caught:
        load_optimizer_(tmp_path / "damaged", optimizer, model=model)
    assert "delete the file" in caught.value.hint
    after = copy_moments(optimizer, model=model)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def test_what_is_not_such_a_file_is_a_damaged_error(config, saved, tmp_path):
    model, optimizer = trained(config)
    (tmp_path / "cut").write_bytes(saved.read_bytes()[:-5])
    (tmp_path / "empty").touch()
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "foreign")
    for name in ("cut", "empty", "foreign", "missing"):
        with pytest.raises(DamagedError, match=name):
            load_optimizer_(tmp_path / name, optimizer, model=model)


def test_a_state_of_another_model_is_refused(config, saved):
    torch.manual_seed(0)
    model = Llama(replace(config.model, ffn_width=8))
    with pytest.raises(DamagedError, match="another model"):
        load_optimizer_(saved, make_optimizer(model, config.inner), model=model)


def test_a_save_that_fails_is_a_run_error_and_leaves_the_old_file(config, saved, tmp_path):
    model, optimizer = trained(config)
    path = tmp_path / "optimizer"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as good as a full disk
    try:
        with pytest.raises(RunError, match="cannot be written") as caught:
            save_optimizer(path, copy_moments(optimizer, model=model), num_steps=NUM_STEPS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "disk" in caught.value.hint
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"optimizer": b"old"}
