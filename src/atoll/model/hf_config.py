"""The architecture as Hugging Face's config.json describes it, both ways. Needs no torch."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from atoll.config import ModelConfig
from atoll.errors import ConfigError

ONLY_LLAMA: Final = "only models of the Llama 3 architecture can be read"


def describe(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of config.json that follow from the architecture.

    The rotary ones are those of transformers 4, which newer versions and other programs read too.
    """
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_sequence_length,
        },
    }


class _Rope(Struct, frozen=True, kw_only=True):
    rope_type: str | None = None
    type: str | None = None  # its name before transformers 4.43
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


class _Config(Struct, frozen=True, kw_only=True):
    """The keys of config.json that change what the model computes, with transformers' defaults."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None  # the two above in one, from transformers 5 on

    @property
    def rope(self) -> _Rope:
        return self.rope_parameters or self.rope_scaling or _Rope()

    @property
    def rope_type(self) -> str:
        return self.rope.rope_type or self.rope.type or "default"


def parse(encoded: bytes) -> ModelConfig:
    """Return the architecture that the bytes of a config.json describe.

    Raises:
        ConfigError: it is none that `Llama` can be, or they are damaged.
    """
    try:
        theirs = msgspec.json.decode(encoded, type=_Config)
        _refuse_other_architectures(theirs)
        config = msgspec.convert(_translate(theirs), ModelConfig)
    except ValueError as error:  # msgspec's own errors, and bad UTF-8
        raise ConfigError(
            f"not the config.json of a Llama: {error}", hint="fetch the folder again"
        ) from error
    _refuse_odd_heads(theirs, config)
    return config


def _refuse_other_architectures(theirs: _Config) -> None:
    for key, value, supported in (
        ("model_type", theirs.model_type, ("llama",)),
        ("hidden_act", theirs.hidden_act, ("silu",)),
        ("attention_bias", theirs.attention_bias, (False,)),
        ("mlp_bias", theirs.mlp_bias, (False,)),
        ("rope_type", theirs.rope_type, ("default", "llama3")),
    ):
        if value not in supported:
            allowed = " or ".join(map(repr, supported))
            raise ConfigError(f"{key} is {value!r}, not {allowed}", hint=ONLY_LLAMA)


def _refuse_odd_heads(theirs: _Config, config: ModelConfig) -> None:
    wrong = (
        config.width % config.num_heads
        or config.num_heads % config.num_kv_heads
        or config.head_width % 2
        or theirs.head_dim not in (None, config.head_width)
    )
    if wrong:
        raise ConfigError(
            f"{config.num_heads} heads and {config.num_kv_heads} key-value heads of width "
            f"{theirs.head_dim or config.head_width} do not make a model of width {config.width}",
            hint=ONLY_LLAMA,
        )


def _translate(theirs: _Config) -> dict[str, Any]:
    scaling = None
    if theirs.rope_type != "default":
        scaling = {
            "factor": theirs.rope.factor,
            "low_freq_factor": theirs.rope.low_freq_factor,
            "high_freq_factor": theirs.rope.high_freq_factor,
            "original_sequence_length": theirs.rope.original_max_position_embeddings,
        }
    return {
        "vocab_size": theirs.vocab_size,
        "num_layers": theirs.num_hidden_layers,
        "width": theirs.hidden_size,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_key_value_heads or theirs.num_attention_heads,
        "ffn_width": theirs.intermediate_size,
        "tied_embeddings": theirs.tie_word_embeddings,
        "norm_eps": theirs.rms_norm_eps,
        "rope_theta": theirs.rope.rope_theta or theirs.rope_theta,
        "rope_scaling": scaling,
        "init_std": theirs.initializer_range,
    }


class _Length(Struct, frozen=True, kw_only=True):
    max_position_embeddings: int = 2048  # transformers' default for a Llama


def trained_length(content: bytes) -> int:
    """Return how many tokens at once the model of this config.json was trained on."""
    return msgspec.json.decode(content, type=_Length).max_position_embeddings
