"""The bytes that training takes on a device, before anything is built.

    weights, gradients, moments            fp32, follow from the parameters
    casts                                  the matrices in bf16, where products are taken in it
    activations, masks, loss               what one micro-batch leaves for its backward pass

The formulas are those of `llama.py` as autograd keeps its tensors (`tests/numerics/test_memory.py`
counts them). `devices` shards what follows from the parameters evenly (ZeRO-3, arXiv 1910.02054,
section 5.3), and gathers one layer at a time, the next one beside it; `recomputes` keeps only what
enters each layer (arXiv 1604.06174). A trainer does both where `PeerConfig` says so. Not counted:
over several devices, embedding and head stay gathered while a micro-batch is under way, and with
`accumulate = "whole"` all gradients are held on each.

Per token: D model width, G width of keys, F inner width of the feed-forward, H heads, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct, structs

from atoll.config import RunConfig
from atoll.model.accounting import FP32_BYTES, count_parameters
from atoll.model.shapes import gains_by_fp8, parameter_specs

BF16_BYTES = 2
# Logits that exist at once (train/loss.py, which has them by the device; a test compares).
CPU_CHUNK_LOGITS = 2**23
GPU_CHUNK_LOGITS = 2**27


class TrainerBytes(Struct, frozen=True, kw_only=True):
    """On each device of a peer."""

    weights: int
    gradients: int
    moments: int
    casts: int
    activations: int
    masks: int
    loss: int

    @property
    def total(self) -> int:
        return sum(structs.astuple(self))


class Training(NamedTuple):
    """How a peer trains: samples at once on each device, in bf16 or not.

    The model is sharded over the devices of a machine; what each of them holds does not depend on
    how many machines there are.
    """

    micro_batch: int
    bf16: bool = True
    devices: int = 1  # of a machine
    recomputes: bool = False
    machines: int = 1
    chunk_logits: int = GPU_CHUNK_LOGITS
    fp8: bool = False  # the large products of the layers; what else is in bf16 says `bf16`


def trainer_bytes(config: RunConfig, how: Training) -> TrainerBytes:
    """Return what training takes on each device. A step's small, short-lived tensors are not in."""
    vector = -(-FP32_BYTES * count_parameters(config.model).total // how.devices)
    tokens = how.micro_batch * config.data.sequence_length
    kept, layer = activation_bytes_per_token(config, bf16=how.bf16)
    num_layers = config.model.num_layers
    width_bytes = FP32_BYTES * config.model.width  # what enters a layer
    per_token = num_layers * width_bytes + layer if how.recomputes else num_layers * layer
    return TrainerBytes(
        weights=vector,
        gradients=vector,
        moments=-(-moment_bytes(config) // how.devices),
        casts=_cast_bytes(config, how),
        activations=tokens * (per_token + kept),
        masks=mask_bytes(config, how),
        loss=loss_bytes(config, how),
    )


def largest(most: int, *, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `most` that fits, or 0; below one that fits, all do."""
    if fits(most):
        return most
    found, too_large = 0, most
    while too_large - found > 1:
        middle = (found + too_large) // 2
        if fits(middle):
            found = middle
        else:
            too_large = middle
    return found


def largest_micro_batch(config: RunConfig, how: Training, *, most: int, room_bytes: int) -> int:
    """Return how many samples at once fit into so much memory on each device; 0: not even one."""
    return largest(
        most, fits=lambda n: trainer_bytes(config, how._replace(micro_batch=n)).total <= room_bytes
    )


def what_would_fit(config: RunConfig, how: Training, *, room_bytes: int) -> str:
    """Return the least change with which the memory of each device holds the run; or nothing.

    Tried in this order: fewer samples at once, recomputing, more devices.
    """
    for devices in (how.devices, *(n for n in (2, 4, 8) if n > how.devices)):
        for recomputes in (how.recomputes, True):
            changed = how._replace(micro_batch=1, devices=devices, recomputes=recomputes)
            if trainer_bytes(config, changed).total <= room_bytes:
                return ", ".join(
                    [
                        *([f"devices = {devices}"] if devices != how.devices else []),
                        *(['recompute = "layers"'] if recomputes != how.recomputes else []),
                        "micro_batch = 1",
                    ]
                )
    return ""


def moment_bytes(config: RunConfig) -> int:
    """Return what the inner optimizer remembers: Adam two values for a parameter, Muon one."""
    specs = parameter_specs(config.model)
    by_muon = config.inner.optimizer == "muon"
    num_values = sum(
        spec.num_values * (1 if by_muon and spec.is_block_matrix else 2) for spec in specs
    )
    return FP32_BYTES * num_values


def activation_bytes_per_token(config: RunConfig, *, bf16: bool) -> tuple[int, int]:
    """Return what autograd keeps for each token: outside of the layers, and in each layer.

    In a layer, fp32: what enters each norm and what it normalises (4 D), and what leaves it (2 D);
    queries and what attention gives (2 D); keys and values (2 G); the feed-forward's gate, its
    SiLU, the other branch, and their product (4 F); a number for each head and norm. In bf16 the
    norms stay in fp32, but for the casts of what left them (2 D). Outside: the last norm, and the
    gradient of the hidden state (3 D).
    """
    model = config.model
    width, kv_width = model.width, model.num_kv_heads * model.head_width
    norms, numbers = 4 * width, model.num_heads + 2
    if bf16:
        products = 4 * width + 2 * kv_width + 4 * model.ffn_width
        layer = FP32_BYTES * (norms + numbers) + BF16_BYTES * products
    else:
        products = 4 * width + 2 * kv_width + 4 * model.ffn_width
        layer = FP32_BYTES * (norms + numbers + products)
    return FP32_BYTES * (3 * width + 1), layer


def loss_bytes(config: RunConfig, how: Training) -> int:
    """Return what the loss holds at its peak: the head's gradient, twice, and a chunk of logits.

    The gradient is taken in the forward pass and scaled in the backward pass. In bf16 a chunk is
    there as the head left it and as a gradient in bf16 as well, and the head has its cast.
    """
    model = config.model
    num_logits = how.micro_batch * config.data.sequence_length * model.vocab_size
    num_logits = min(num_logits, how.chunk_logits)
    narrow = BF16_BYTES if how.bf16 else 0
    head = model.vocab_size * model.width * (2 * FP32_BYTES + narrow)
    return head + num_logits * (FP32_BYTES + 2 * narrow)


def mask_bytes(config: RunConfig, how: Training) -> int:
    """Return what the mask of packed documents takes: T x T of a sample, as numbers for all layers.

    Samples of one document need none.
    """
    number_bytes = BF16_BYTES if how.bf16 else FP32_BYTES
    return how.micro_batch * config.data.sequence_length**2 * number_bytes


def _cast_bytes(config: RunConfig, how: Training) -> int:
    """Return what the layers' matrices take in bf16; over several devices, those of two layers.

    Those in fp8 are cast for each product, and nothing is kept of that.
    """
    if not how.bf16:
        return 0
    specs = parameter_specs(config.model)
    cast = [spec for spec in specs if spec.is_block_matrix]
    if how.fp8 and how.devices == 1:  # several gather them in bf16
        cast = [spec for spec in cast if not gains_by_fp8(spec)]
    num_values = sum(spec.num_values for spec in cast)
    if how.devices > 1:
        num_values = 2 * num_values // config.model.num_layers
    return BF16_BYTES * num_values
