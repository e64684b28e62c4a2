"""The formulas of model/memory.py against what autograd keeps, tensor by tensor."""

import pytest
import torch

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
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
from atoll.train.optim import make_optimizer


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


def test_weights_gradients_and_moments():
    config = config_of()
    model = Llama(config.model)
    optimizer = make_optimizer(model, config.inner)
    sum(weight.sum() for weight in model.parameters()).backward()
    optimizer.step()
    predicted = trainer_bytes(config, Training(micro_batch=1))
    weights = list(model.parameters())
    assert predicted.weights == sum(weight.nbytes for weight in weights)
    assert predicted.gradients == sum(weight.grad.nbytes for weight in weights)
    assert predicted.moments == sum(
        optimizer.state[weight][moment].nbytes
        for weight in weights
        for moment in ("exp_avg", "exp_avg_sq")
    )


def test_devices_share_what_follows_from_the_parameters_and_recomputing_what_follows_from_tokens():
    config = config_of(num_layers=8)
    alone = trainer_bytes(config, Training(micro_batch=2))
    shared = trainer_bytes(config, Training(micro_batch=2, devices=4))
    assert shared.weights == alone.weights / 4
    assert (shared.activations, shared.loss) == (alone.activations, alone.loss)
    assert shared.casts < alone.casts

    recomputed = trainer_bytes(config, Training(micro_batch=2, recomputes=True))
    assert recomputed.weights == alone.weights
    assert recomputed.activations < alone.activations / 3
