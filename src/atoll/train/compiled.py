"""The layers of a model as compiled code: torch.compile, layer by layer. And the loss of logits.

All layers have one shape, so what is compiled for the first serves all of them. A layer stays the
module that it was, with the same parameters under the same names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch

from atoll.errors import ConfigError
from atoll.model.llama import Llama
from atoll.train.device import device_name
from atoll.train.loss import OfChunk, by_formulas, by_operations

Compiler: TypeAlias = Literal["none", "aot_eager", "inductor"]
"""What makes code of a layer, by torch's names. `aot_eager` finds the operations of both passes and
runs them one by one: it needs no toolchain, and tests take it."""


def compile_(model: Llama, compiler: Compiler, *, device: torch.device) -> None:
    """Let each layer be compiled when it is first called; before the model is sharded.

    For CUDA, packed documents are then masked in blocks. Elsewhere, flex attention has no code of
    its own for backward passes.
    """
    if compiler == "none":
        return
    for layer in model.layers:
        layer.compile(backend=compiler)
    model.masks_in_blocks = compiler == "inductor" and device.type == "cuda"


def loss_of_chunk(compiler: Compiler) -> OfChunk:
    """Return what turns logits into their loss and its gradient, compiled when first called."""
    if compiler == "none":
        return by_operations
    compiled: OfChunk = torch.compile(by_formulas, backend=compiler)
    return compiled


@contextmanager
def uncompiled(model: Llama, compiler: Compiler) -> Iterator[None]:
    """Let layers run as they are written: for shapes that are too rare to compile for."""
    if compiler == "none":  # and the seconds that it takes to import what compiles are saved
        yield
        return
    in_blocks, model.masks_in_blocks = model.masks_in_blocks, False  # else all scores would exist
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.masks_in_blocks = in_blocks


def require_compiler(device: torch.device) -> None:
    """Compile something small for the device: whether a toolchain works, only a trial can say.

    Raises:
        ConfigError: it does not.
    """
    # Without what earlier ones have left on the disk: the toolchain may be gone since.
    double = torch.compile(_double, options={"fx_graph_cache": False})
    try:
        double(torch.ones(64, device=device))
    except RuntimeError as error:  # each part of a toolchain has its own kind of it
        raise ConfigError(
            f"nothing can be compiled here for this device: {device_name(device)}",
            hint="a CPU needs a C++ compiler and the headers of Python, a GPU a C compiler and "
            "Triton; compile = false does without",
        ) from error


def _double(x_N: torch.Tensor) -> torch.Tensor:
    return x_N + x_N
