"""The bytes that training takes on a device, before anything is built.

    weights, gradients, moments            fp32, follow from the parameters
    casts                                  the matrices in bf16, where products are taken in it
    gathered                               of several devices, what one of them has whole
    activations, masks, loss               what one micro-batch leaves for its backward pass

The formulas are those of `llama.py` as autograd keeps its tensors (`tests/numerics/test_memory.py`
counts them, all of them while a step of 8 ranks is traced). `devices` shards what follows from the
parameters evenly (ZeRO-3, arXiv 1910.02054, section 5.3), and gathers as FSDP2 does: embedding and
head for a whole micro-batch, layers one at a time, the next one beside it. `recomputes` keeps only
what enters each layer (arXiv 1604.06174). Gradients count as if a micro-batch had gone before.

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
    gathered: int
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
    whole_gradients: bool = False  # several devices sum them up once a step (accumulate)

    @property
    def narrow_bytes(self) -> int:
        """Of a value of what products are taken of."""
        return BF16_BYTES if self.bf16 else FP32_BYTES

    @property
    def entering_bytes(self) -> int:
        """Of a value of what enters layers and norms.

        Behind an embedding that is gathered in bf16, all additions are.
        """
        return self.narrow_bytes if self.devices > 1 else FP32_BYTES


def trainer_bytes(config: RunConfig, how: Training) -> TrainerBytes:
    """Return what training takes on each device. A step's small, short-lived tensors are not in."""
    vector = -(-FP32_BYTES * count_parameters(config.model).total // how.devices)
    tokens = how.micro_batch * config.data.sequence_length
    kept, layer = activation_bytes_per_token(config, how)
    num_layers = config.model.num_layers
    width_bytes = how.entering_bytes * config.model.width
    per_token = num_layers * width_bytes + layer if how.recomputes else num_layers * layer
    activations = tokens * (per_token + kept)
    loss = loss_bytes(config, how)
    if how.recomputes:  # the first layer is formed again when the loss is done
        loss = max(0, loss - tokens * layer)
    return TrainerBytes(
        weights=vector,
        gradients=vector,
        moments=-(-moment_bytes(config) // how.devices),
        casts=_cast_bytes(config, how),
        gathered=gathered_bytes(config, how, activations=activations, loss=loss),
        activations=activations,
        masks=mask_bytes(config, how),
        loss=loss,
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


def activation_bytes_per_token(config: RunConfig, how: Training) -> tuple[int, int]:
    """Return what autograd keeps for each token: outside of the layers, and in each layer.

    In a layer: what enters each norm (2 D), and what leaves it for the products (2 D); queries and
    what attention gives (2 D); keys and values (2 G); the feed-forward's gate, its SiLU, the other
    branch, and their product (4 F); a number for each norm and, but on CPUs, for each head.
    Outside: what enters the last norm, and the gradient of the hidden state (2 D).
    """
    model = config.model
    width, kv_width = model.width, model.num_kv_heads * model.head_width
    products = 4 * width + 2 * kv_width + 4 * model.ffn_width
    numbers = FP32_BYTES * (model.num_heads + 2)
    layer = how.entering_bytes * 2 * width + numbers + how.narrow_bytes * products
    return FP32_BYTES * (2 * width + 1), layer


def loss_bytes(config: RunConfig, how: Training) -> int:
    """Return what the loss holds at its peak, in its forward pass or at the start of the backward.

    The head's gradient is taken in the forward pass, chunk by chunk: the logits of one are there as
    the head left them and in fp32, or their gradient and its product with the hidden states. In
    the backward pass it is there twice, the second time scaled; and cast, for a head that was
    gathered in bf16. A head that was not has its own cast in the forward pass.
    """
    model, narrow = config.model, BF16_BYTES if how.bf16 else 0
    num_logits = how.micro_batch * config.data.sequence_length * model.vocab_size
    num_logits = min(num_logits, how.chunk_logits)
    head = model.vocab_size * model.width
    in_forward = max(num_logits * (FP32_BYTES + narrow), (num_logits + head) * narrow)
    in_backward = FP32_BYTES * head
    if how.devices == 1:
        in_forward += narrow * head
    else:
        in_backward += narrow * head
    return FP32_BYTES * head + max(in_forward, in_backward)


def gathered_bytes(config: RunConfig, how: Training, *, activations: int, loss: int) -> int:
    """Return what a device holds whole of what several share, beyond what counts elsewhere.

    Embedding and head stay through both passes of a micro-batch. Further there are, in the backward
    pass of a layer, the layer, the one that is next, its gradient, the same in fp32 on its way to
    all devices, and the head's gradient; the loss is done then. At the end, the gradients of
    embedding and head are in place of the activations, and in fp32 as well.
    """
    if how.devices == 1:
        return 0
    counts = count_parameters(config.model)
    root = counts.embedding + config.model.width
    layer = (counts.total - root) // config.model.num_layers
    head = config.model.vocab_size * config.model.width
    in_layer = layer * (3 * how.narrow_bytes + FP32_BYTES) + head * how.narrow_bytes
    at_end = root * (how.narrow_bytes + FP32_BYTES) - activations
    gradients = FP32_BYTES * counts.total
    in_place_of_shards = gradients - gradients // how.devices if how.whole_gradients else 0
    return root * how.narrow_bytes + max(0, in_layer - loss, at_end - loss) + in_place_of_shards


def mask_bytes(config: RunConfig, how: Training) -> int:
    """Return what the mask of packed documents takes: T x T of a sample, as numbers for all layers.

    Samples of one document need none.
    """
    number_bytes = BF16_BYTES if how.bf16 else FP32_BYTES
    return how.micro_batch * config.data.sequence_length**2 * number_bytes


def _cast_bytes(config: RunConfig, how: Training) -> int:
    """Return what the layers' matrices take in bf16, where they are not gathered in it.

    Those in fp8 are cast for each product, and nothing is kept of that.
    """
    if not how.bf16 or how.devices > 1:
        return 0
    cast = [spec for spec in parameter_specs(config.model) if spec.is_block_matrix]
    if how.fp8:
        cast = [spec for spec in cast if not gains_by_fp8(spec)]
    return BF16_BYTES * sum(spec.num_values for spec in cast)
