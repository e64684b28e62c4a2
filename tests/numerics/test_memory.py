"""The formulas of model/memory.py against what autograd keeps, tensor by tensor."""

import weakref

import pytest
import torch
import torch.distributed as dist
from msgspec.structs import replace as changed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    Recompute,
    RunConfig,
    SourceConfig,
    SyncConfig,
)
from atoll.model.llama import Llama
from atoll.model.memory import (
    CPU_CHUNK_LOGITS,
    GPU_CHUNK_LOGITS,
    Training,
    trainer_bytes,
)
from atoll.train.loss import CHUNK_LOGITS, language_model_loss
from atoll.train.optim import copy_moments, make_optimizer
from atoll.train.parallel import Ranks, shard_
from atoll.train.recompute import recompute_


def config_of(*, z_loss: float = 0.0, num_layers: int = 3, **model: object) -> RunConfig:
    shape = {"vocab_size": 512, "width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 176}
    return RunConfig(
        name="x",
        model=ModelConfig(num_layers=num_layers, **(shape | model)),
        data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),), sequence_length=40),
        inner=InnerConfig(lr=1e-3, batch_sequences=4, z_loss=z_loss),
        sync=SyncConfig(rounds=1, inner_steps=1),
    )


def kept_bytes(config: RunConfig, *, micro_batch: int, bf16: bool, packed: bool) -> int:
    """Return the bytes that the forward pass leaves for the backward pass, each storage once."""
    model = Llama(config.model)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # holds on to them, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens_BT = torch.zeros(micro_batch, config.data.sequence_length, dtype=torch.int64)
    documents_BT = (torch.arange(40) // 20).expand(micro_batch, -1) if packed else None
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        language_model_loss(
            model.hidden(tokens_BT, documents_BT),
            model.head_weight,
            tokens_BT,
            num_targets=tokens_BT.numel(),
            z_loss=config.inner.z_loss,
        )
    return sum(
        tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights
    )


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tied_embeddings", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_what_is_kept_for_the_backward_pass(bf16, packed, tied_embeddings, micro_batch):
    config = config_of(tied_embeddings=tied_embeddings)
    predicted = trainer_bytes(config, Training(micro_batch=micro_batch, bf16=bf16))
    masks = predicted.masks if packed else 0
    head_gradient = 4 * config.model.vocab_size * config.model.width
    expected = predicted.activations + predicted.casts + masks + head_gradient
    kept = kept_bytes(config, micro_batch=micro_batch, bf16=bf16, packed=packed)
    # Tokens, targets and rotations are in no formula: some kilobytes at any size of model.
    assert expected <= kept + 8_000
    assert kept <= expected + 8_000 + 40 * 16 * 4 * 2


def test_the_chunks_of_logits_are_those_of_the_loss():
    assert CHUNK_LOGITS["cpu"] == CPU_CHUNK_LOGITS
    assert CHUNK_LOGITS["cuda"] == GPU_CHUNK_LOGITS


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied_embeddings", [False, True])
def test_weights_gradients_and_moments(optimizer, tied_embeddings):
    config = config_of(tied_embeddings=tied_embeddings)
    config = changed(config, inner=changed(config.inner, optimizer=optimizer))
    model = Llama(config.model)
    optimizer = make_optimizer(model, config.inner)
    sum(weight.sum() for weight in model.parameters()).backward()
    optimizer.step()
    predicted = trainer_bytes(config, Training(micro_batch=1))
    weights = list(model.parameters())
    assert predicted.weights == sum(weight.nbytes for weight in weights)
    assert predicted.gradients == sum(weight.grad.nbytes for weight in weights)
    kept = [value for weight in weights for value in optimizer.state[weight].values()]
    assert predicted.moments == sum(value.nbytes for value in kept if value.ndim)  # not the counts
    on_disk = copy_moments(optimizer, model=model)
    assert predicted.moments == sum(moment.nbytes for moment in on_disk.values())


def test_devices_share_what_follows_from_the_parameters_and_recomputing_what_follows_from_tokens():
    config = config_of(num_layers=8)
    alone = trainer_bytes(config, Training(micro_batch=2))
    shared = trainer_bytes(config, Training(micro_batch=2, devices=4))
    assert shared.weights == alone.weights / 4
    norms = 2 * 2 * 40 * 8 * 64  # what enters them is in bf16 where the embedding is gathered in it
    assert shared.activations == alone.activations - 2 * norms
    assert shared.casts == alone.gathered == 0
    whole = trainer_bytes(config, Training(micro_batch=2, devices=4, whole_gradients=True))
    assert whole.gathered + whole.gradients == shared.gathered + alone.gradients

    recomputed = trainer_bytes(config, Training(micro_batch=2, recomputes=True))
    assert recomputed.weights == alone.weights
    assert recomputed.activations < alone.activations / 3


class Traced(TorchDispatchMode):
    """The most bytes that existed at once, of tensors that only pretend to be there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what becomes of its rows is asked next
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor):
                storage = tensor.untyped_storage()
                self._storages[id(storage)] = weakref.ref(storage)
        held = [storage for known in self._storages.values() if (storage := known()) is not None]
        # FSDP empties storages in place: each is asked anew.
        self.peak_bytes = max(self.peak_bytes, sum(storage.nbytes() for storage in held))
        return result


def traced_peak_bytes(config: RunConfig, how: Training, *, recompute: Recompute) -> int:
    """Return what the first of several ranks holds at most in a step of two micro-batches."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=how.devices)
    try:
        ranks = Ranks(0, how.devices, init_device_mesh("cpu", (how.devices,)))
        with FakeTensorMode(), Traced() as traced:
            model = Llama(config.model)
            shard_(model, ranks, bf16=how.bf16)
            recompute_(model, recompute)
            optimizer = make_optimizer(model, config.inner)
            tokens_BT = torch.zeros(how.micro_batch, config.data.sequence_length, dtype=torch.int64)
            for _ in range(2):
                optimizer.zero_grad()
                traced.peak_bytes = 0  # of the first step, which begins without moments
                for is_last in (False, True):
                    ranks.reduce_gradients_(model, is_last=is_last, accumulate="shards")
                    objective, _ = language_model_loss(
                        model.hidden(tokens_BT),
                        model.head_weight,
                        tokens_BT,
                        num_targets=1,
                        z_loss=0.0,
                    )
                    objective.backward()
                optimizer.step()
    finally:
        dist.destroy_process_group()
    return traced.peak_bytes


@pytest.mark.parametrize(("recompute", "within"), [("nothing", 0.02), ("layers", 0.05)])
def test_what_one_of_eight_devices_holds(recompute, within, monkeypatch):
    """The figures of large models are in docs/benchmarks/planner.md."""
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", 2**20)
    config = config_of(vocab_size=4096, width=256, ffn_width=896)
    config = changed(config, data=changed(config.data, sequence_length=512))
    how = Training(1, devices=8, recomputes=recompute == "layers", chunk_logits=CHUNK_LOGITS["cpu"])
    predicted = trainer_bytes(config, how)
    traced = traced_peak_bytes(config, how, recompute=recompute)
    assert predicted.total - predicted.masks == pytest.approx(traced, rel=within)
