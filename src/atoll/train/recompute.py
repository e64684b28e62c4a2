"""What a backward pass forms again instead of keeping it: memory for time.

    nothing       all that the layers compute is kept
    selective     only what takes long is: matrix products and attention; the rest is formed again.
                  With fp8 the largest values, too: a number each, found by reading all of a tensor
    layers        only what enters each layer is (arXiv 1604.06174): one more forward pass

The values are the same, so is the gradient. A layer in machine code is one operation: with
`compile`, selective forms all of it again.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from atoll.config import Recompute
from atoll.model.llama import Llama

_TAKES_LONG = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten.max.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.atoll.attend.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


def recompute_(model: Llama, what: Recompute) -> None:
    """Let the backward passes of the model form this again."""
    if what == "nothing":
        return
    contexts: dict[str, Any] = {}
    if what == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _keep)

    def run_layer(layer: torch.nn.Module, *inputs: Any) -> Tensor:
        # No dropout, no other chance: there is no state of a generator to be kept.
        x_BTD: Tensor = checkpoint(
            layer, *inputs, use_reentrant=False, preserve_rng_state=False, **contexts
        )
        return x_BTD

    model.run_layer = run_layer


def _keep(_context: Any, operation: Any, *_inputs: Any, **_named: Any) -> CheckpointPolicy:
    keep = operation in _TAKES_LONG
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
