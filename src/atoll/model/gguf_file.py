"""A model as one GGUF file, which llama.cpp and its kin read. Needs the package `gguf`.

GGUF's Llama turns neighbours of a head in its rotary embedding where we turn the two halves, so the
rows of queries and keys change places. Slowed-down frequencies become a tensor of divisors.

Shapes: N all values of the model, D its width, H heads, R rotations of a head (half its width).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from atoll.config import ModelConfig
from atoll.durable import publish
from atoll.errors import ConfigError, RunError
from atoll.model.hf import Text, views
from atoll.model.llama import rotary_frequencies
from atoll.system import sync

OUTER_NAMES: Final = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
LAYER_NAMES: Final = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.q.weight": "attn_q.weight",
    "attention.k.weight": "attn_k.weight",
    "attention.v.weight": "attn_v.weight",
    "attention.out.weight": "attn_output.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn.gate.weight": "ffn_gate.weight",
    "ffn.up.weight": "ffn_up.weight",
    "ffn.down.weight": "ffn_down.weight",
}
# How text is cut into words before BPE: the names that llama.cpp has for rules of tokenizer.json.
GPT2_WORDS: Final = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3_REGEX: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NORMAL, UNUSED, CONTROL = 1, 5, 3  # kinds of tokens (llama.cpp, llama_token_type)


def export_gguf(
    path: Path, config: ModelConfig, params_N: NDArray[np.float32], *, text: Text, name: str
) -> None:
    """Write the model in fp32 to a file, which appears only when all of it is on disk.

    Raises:
        ConfigError: the file exists, the package gguf is not installed, or its readers cannot have
            such a tokenizer.
        RunError: the disk would not take it.
    """
    if path.exists():
        raise ConfigError(f"{path} exists", hint="choose another name; nothing was changed")
    writer_of = _gguf().GGUFWriter
    vocabulary = read_vocabulary(text.tokenizer_path)
    beside = path.with_name(f".{path.name}.partial")
    try:
        writer = writer_of(beside, "llama")
        _describe_(writer, config, text, name=name)
        _describe_vocabulary_(writer, vocabulary, text, vocab_size=config.vocab_size)
        for tensor, values in tensors(config, params_N):
            writer.add_tensor(tensor, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync(beside)
        publish(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunError(
            f"cannot write the model to {path}: {error}",
            hint="free some space there, or choose another place",
        ) from error


def tensors(
    config: ModelConfig, params_N: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors of the file, under GGUF's names and in its order of rows."""
    if config.rope_scaling is not None:
        device = torch.device("cpu")
        plain_R = rotary_frequencies(replace(config, rope_scaling=None), device=device)
        yield "rope_freqs.weight", (plain_R / rotary_frequencies(config, device=device)).numpy()
    heads = {"attention.q.weight": config.num_heads, "attention.k.weight": config.num_kv_heads}
    for spec, values in views(config, params_N):
        if spec.layer is None:
            yield OUTER_NAMES[spec.name], values
            continue
        part = spec.name.split(".", 2)[2]
        if part in heads:
            values = _halves_to_neighbours(values, num_heads=heads[part])
        yield f"blk.{spec.layer}.{LAYER_NAMES[part]}", values


def _halves_to_neighbours(rows: NDArray[np.float32], *, num_heads: int) -> NDArray[np.float32]:
    """Return the rows of each head so that what is turned together lies together."""
    rows_H2RD = rows.reshape(num_heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(rows_H2RD.swapaxes(1, 2).reshape(rows.shape))


def _describe_(writer: Any, config: ModelConfig, text: Text, *, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(0)  # all in fp32
    writer.add_context_length(text.sequence_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


# --- the tokenizer -------------------------------------------------------------------------------


class _Added(Struct, frozen=True):
    id: int
    content: str
    special: bool = False


class _Bpe(Struct, frozen=True):
    type: str
    vocab: dict[str, int] = {}
    merges: list[str | tuple[str, str]] = []


class Vocabulary(Struct, frozen=True):
    """What GGUF needs of a tokenizer.json."""

    model: _Bpe
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[_Added] = []

    @property
    def words(self) -> str | None:
        """The name of the rules that cut text into words; None: they have none in GGUF."""
        rules = self.pre_tokenizer or {}
        if GPT2_WORDS.items() <= rules.items():
            return "gpt-2"
        parts = rules.get("pretokenizers") or [{}]
        if parts[0].get("pattern") == {"Regex": LLAMA3_REGEX} and len(parts) == 2:
            return "llama-bpe"
        return None


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the tokens and rules of a tokenizer.json.

    Raises:
        ConfigError: it is none that the readers of GGUF can have.
    """
    try:
        vocabulary = msgspec.json.decode(path.read_bytes(), type=Vocabulary)
        unusable = vocabulary.model.type != "BPE" or vocabulary.words is None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"cannot read the tokenizer {path}: {error}") from error
    if unusable:
        raise ConfigError(
            f"a GGUF file cannot have this tokenizer: {path}",
            hint="it takes a byte-level BPE that cuts words as GPT-2 or Llama 3 does; "
            "export a folder instead",
        )
    return vocabulary


def _describe_vocabulary_(
    writer: Any, vocabulary: Vocabulary, text: Text, *, vocab_size: int
) -> None:
    tokens = [f"[unused {token}]" for token in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for content, token in vocabulary.model.vocab.items():
        tokens[token], kinds[token] = content, NORMAL
    for added in vocabulary.added_tokens:
        tokens[added.id] = added.content
        kinds[added.id] = CONTROL if added.special else NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.words)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary.model.merges]
    )
    writer.add_bos_token_id(text.document_token_id)
    writer.add_eos_token_id(text.document_token_id)
    writer.add_bool("tokenizer.ggml.add_bos_token", val=True)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "the package gguf is not installed", hint="pip install 'atoll[gguf]'"
        ) from error
    return gguf
