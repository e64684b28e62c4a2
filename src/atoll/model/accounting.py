"""What a model costs: parameters and floating-point operations. `memory` has the bytes."""

from typing import NamedTuple

from atoll.config import ModelConfig
from atoll.model.shapes import gains_by_fp8, num_parameters, parameter_specs

FP32_BYTES = 4


class ParameterCounts(NamedTuple):
    """`embedding` includes an untied head: both grow with the vocabulary, not with the depth."""

    total: int
    embedding: int

    @property
    def non_embedding(self) -> int:
        return self.total - self.embedding


def count_parameters(config: ModelConfig) -> ParameterCounts:
    tables = 1 if config.tied_embeddings else 2
    return ParameterCounts(
        total=num_parameters(config), embedding=tables * config.vocab_size * config.width
    )


def flops_per_token(config: ModelConfig, *, sequence_length: int) -> int:
    """Return the floating-point operations that training takes for one token.

    6 N + 12 L D T (PaLM, arXiv 2204.02311, appendix B): forward and backward take 6 for each of the
    N weights that a token is multiplied with (the head is one of them; the embedding is a lookup,
    and the norms do not count), and 12 for each layer, channel and position that it attends to. As
    is usual where utilisation is reported, what the causal mask saves is not subtracted.
    """
    counts = count_parameters(config)
    norms = (2 * config.num_layers + 1) * config.width
    num_weights = counts.non_embedding - norms + config.vocab_size * config.width
    attention = 12 * config.num_layers * config.width * sequence_length
    return 6 * num_weights + attention


def fp8_flops_per_token(config: ModelConfig) -> int:
    """Return how many of them are in 8 bits where a peer trains so."""
    return 6 * sum(spec.num_values for spec in parameter_specs(config) if gains_by_fp8(spec))
