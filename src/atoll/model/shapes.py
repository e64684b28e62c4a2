"""The parameters of a model, listed without building it: names, shapes, and how each begins.

The order equals that of `Llama(config).named_parameters()`; `layout` says where each of them lies
in a flat vector. Needs no torch, so that a host can lay out 10 B parameters.
"""

import math
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from atoll.config import ModelConfig
from atoll.errors import ConfigError

Init = Literal["ones"] | float
FP8_MULTIPLE: Final = 16  # what the sides of a matrix have to be (torch._scaled_mm, cuBLAS)
FP8_HINT: Final = 'precision = "bf16" takes any of these'


class ParameterSpec(NamedTuple):
    """One tensor. It begins as ones, or as noise around zero with `init` as standard deviation."""

    name: str
    shape: tuple[int, ...]
    init: Init
    layer: int | None = None  # None: it is no part of a transformer block

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def is_block_matrix(self) -> bool:
        """Whether it is a matrix of a transformer block: no embedding, head, or gain of a norm."""
        return self.layer is not None and len(self.shape) == 2

    @property
    def num_rows(self) -> int:
        return self.shape[0]

    @property
    def row_values(self) -> int:
        return math.prod(self.shape[1:])


def gains_by_fp8(spec: ParameterSpec) -> bool:
    """Return whether a product with this matrix is faster in 8 bits than in 16, casts included.

    By torchao's measurements on H100, with a scale for each tensor (its `_auto_filter_for_recipe`):
    one with up to 1024 rows of up to 4096 values is not, like the keys and values of an 8 B model.
    """
    return spec.is_block_matrix and (spec.num_rows > 1024 or spec.row_values > 4096)


def require_fp8_shapes(model: ModelConfig, *, sequence_length: int) -> None:
    """Refuse sizes that products in 8 bits do not take, or with which none of them gains.

    Raises:
        ConfigError: a side of a matrix, or a sample's tokens, is no multiple of 16; or all
            matrices are small.
    """
    large = [spec for spec in parameter_specs(model) if gains_by_fp8(spec)]
    if not large:
        raise ConfigError("no matrix of this model is large enough to gain by fp8", hint=FP8_HINT)
    sides = {f"{spec.name} is {spec.num_rows} x {spec.row_values}": spec.shape for spec in large}
    # In the product for a weight's gradient, the tokens are what is summed over.
    for problem, shape in (*sides.items(), (f"samples have {sequence_length} tokens", None)):
        if any(size % FP8_MULTIPLE for size in shape or (sequence_length,)):
            raise ConfigError(
                f"fp8 takes multiples of {FP8_MULTIPLE} on all sides, and {problem}", hint=FP8_HINT
            )


def parameter_specs(config: ModelConfig) -> tuple[ParameterSpec, ...]:
    """Return all parameters, in the order of the model."""
    vocab_shape = (config.vocab_size, config.width)
    specs = [ParameterSpec("embedding.weight", vocab_shape, config.init_std)]
    for index in range(config.num_layers):
        specs.extend(_layer_specs(config, index))
    specs.append(ParameterSpec("norm.weight", (config.width,), "ones"))
    if not config.tied_embeddings:
        specs.append(ParameterSpec("head.weight", vocab_shape, config.init_std))
    return tuple(specs)


def num_parameters(config: ModelConfig) -> int:
    """Return how many values a flat vector of the model holds; a tied embedding counts once."""
    return sum(spec.num_values for spec in parameter_specs(config))


def _layer_specs(config: ModelConfig, index: int) -> Iterator[ParameterSpec]:
    width, ffn_width = config.width, config.ffn_width
    kv_width = config.num_kv_heads * config.head_width
    std = config.init_std
    # Each layer adds to the residual stream twice. Scaled down by the root of the number of
    # additions, their sum begins with the variance of one (GPT-2, section 2.3).
    output_std = std / math.sqrt(2 * config.num_layers)
    tensors: tuple[tuple[str, tuple[int, ...], Init], ...] = (
        ("attention_norm", (width,), "ones"),
        ("attention.q", (width, width), std),
        ("attention.k", (kv_width, width), std),
        ("attention.v", (kv_width, width), std),
        ("attention.out", (width, width), output_std),
        ("ffn_norm", (width,), "ones"),
        ("ffn.gate", (ffn_width, width), std),
        ("ffn.up", (ffn_width, width), std),
        ("ffn.down", (width, ffn_width), output_std),
    )
    for name, shape, init in tensors:
        yield ParameterSpec(f"layers.{index}.{name}.weight", shape, init, layer=index)
