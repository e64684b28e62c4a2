"""Models in and out of Hugging Face's layout of a Llama, which transformers, vLLM and others read.

    folder/  README.md  config.json  generation_config.json  tokenizer.json  tokenizer_config.json
             model.safetensors, or model-00001-of-00003.safetensors ... and an index

Shapes: N all values of the model.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atoll.config import ModelConfig
from atoll.errors import ConfigError, RunError
from atoll.model.accounting import FP32_BYTES
from atoll.model.hf_config import describe, parse
from atoll.model.shapes import ParameterSpec, num_parameters, parameter_specs
from atoll.system import sync

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
SHARD_BYTES: Final = 5_000_000_000
FETCH_AGAIN: Final = "the folder is damaged or incomplete: fetch it again"
ONLY_PLAIN: Final = "biases, adapters and quantised weights cannot be read"

OUTER_NAMES: Final = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
LAYER_NAMES: Final = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.gate.weight": "mlp.gate_proj.weight",
    "ffn.up.weight": "mlp.up_proj.weight",
    "ffn.down.weight": "mlp.down_proj.weight",
}


def hf_name(name: str) -> str:
    """Return what Hugging Face calls our parameter."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{LAYER_NAMES[rest]}"


def views(
    config: ModelConfig, params_N: NDArray[np.float32]
) -> Iterator[tuple[ParameterSpec, NDArray[np.float32]]]:
    """Yield each parameter of a vector in the order of the model, and its values, in its shape."""
    start = 0
    for spec in parameter_specs(config):
        yield spec, params_N[start : start + spec.num_values].reshape(spec.shape)
        start += spec.num_values


# --- out -----------------------------------------------------------------------------------------


class Text(NamedTuple):
    """What a reader of the folder must know besides the model."""

    tokenizer_path: Path
    document_token: str  # every document begins with it, so it also ends the one before
    document_token_id: int
    sequence_length: int
    card: str = ""  # the README.md of a folder; empty: there is none


def export_hf(
    folder: Path,
    config: ModelConfig,
    params_N: NDArray[np.float32],
    *,
    text: Text,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the model to `folder`, which appears only when all of it is on disk.

    Raises:
        ConfigError: the folder has something in it.
        RunError: the disk would not take it.
    """
    assert params_N.shape == (num_parameters(config),), "not a flat vector of this model"
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"not an empty folder: {folder}", hint="choose one that does not exist")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_descriptions(partial, config, text)
        _write_weights(partial, _shards(config, params_N, max_values=shard_bytes // FP32_BYTES))
        for path in (*partial.iterdir(), partial):
            sync(path)
        if folder.exists():
            folder.rmdir()  # it is empty; Windows renames nothing onto it
        partial.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"cannot write the model to {folder}: {error}",
            hint="free some space there, or choose another folder",
        ) from error


def _write_descriptions(folder: Path, config: ModelConfig, text: Text) -> None:
    shutil.copyfile(text.tokenizer_path, folder / "tokenizer.json")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text.document_token,
        "eos_token": text.document_token,
        "model_max_length": text.sequence_length,
        "clean_up_tokenization_spaces": False,
    }
    document_token_ids = {
        "bos_token_id": text.document_token_id,
        "eos_token_id": text.document_token_id,
    }
    model = {
        **describe(config),
        **document_token_ids,
        "max_position_embeddings": text.sequence_length,
        "torch_dtype": "float32",
    }
    if text.card:
        (folder / "README.md").write_text(text.card, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", tokenizer)
    _write_json(folder / "generation_config.json", document_token_ids)
    _write_json(folder / CONFIG_FILE, model)


def _shards(
    config: ModelConfig, params_N: NDArray[np.float32], *, max_values: int
) -> list[dict[str, NDArray[np.float32]]]:
    """Return the tensors of each file, in order; a larger tensor has a file of its own."""
    shards: list[dict[str, NDArray[np.float32]]] = [{}]
    room = max_values
    for spec, values in views(config, params_N):
        if spec.num_values > room and shards[-1]:
            shards.append({})
            room = max_values
        shards[-1][hf_name(spec.name)] = values
        room -= spec.num_values
    return shards


def _write_weights(folder: Path, shards: list[dict[str, NDArray[np.float32]]]) -> None:
    file_names = [WEIGHTS_FILE]
    if len(shards) > 1:
        file_names = [
            f"model-{number:05}-of-{len(shards):05}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
        num_values = sum(values.size for shard in shards for values in shard.values())
        weight_map = {
            name: file_name
            for file_name, shard in zip(file_names, shards, strict=True)
            for name in shard
        }
        metadata = {"total_size": num_values * FP32_BYTES}
        _write_json(folder / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
    for file_name, shard in zip(file_names, shards, strict=True):
        tensors = {name: _tensor(values) for name, values in shard.items()}
        save_file(tensors, folder / file_name, metadata={"format": "pt"})


def _tensor(values: NDArray[np.float32]) -> Tensor:
    # torch warns of memory that it may only read; such values, and no others, are copied.
    return torch.from_numpy(np.require(values, requirements="W"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


# --- in ------------------------------------------------------------------------------------------


class _Index(Struct, frozen=True, kw_only=True):
    weight_map: dict[str, str]


def import_hf(folder: Path) -> tuple[ModelConfig, NDArray[np.float32]]:
    """Return the architecture and the parameters, a flat vector in canonical order, of a folder.

    Raises:
        ConfigError: it holds no Llama that this package can be, or is damaged.
    """
    try:
        config = parse((folder / CONFIG_FILE).read_bytes())
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for file_name in _weight_files(folder):
                file = stack.enter_context(safe_open(folder / file_name, framework="pt"))
                files.update(dict.fromkeys(file.keys(), file))
            return config, _read_weights(config, files)
    except (OSError, SafetensorError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {folder}: {error}", hint=FETCH_AGAIN) from error
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}", hint=error.hint) from error


def _weight_files(folder: Path) -> list[str]:
    if not (folder / INDEX_FILE).exists():
        return [WEIGHTS_FILE]
    index = msgspec.json.decode((folder / INDEX_FILE).read_bytes(), type=_Index)
    return sorted(set(index.weight_map.values()))


def _read_weights(config: ModelConfig, files: dict[str, Any]) -> NDArray[np.float32]:
    """Return the flat vector, out of the open file that holds each tensor."""
    params_N = np.empty(num_parameters(config), dtype=np.float32)
    for spec, values in views(config, params_N):
        name = hf_name(spec.name)
        if name not in files:
            raise ConfigError(f"there is no tensor {name}", hint=FETCH_AGAIN)
        tensor = files.pop(name).get_tensor(name)
        if tuple(tensor.shape) != spec.shape or not tensor.is_floating_point():
            raise ConfigError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"where {CONFIG_FILE} asks for floats of shape {spec.shape}",
                hint=ONLY_PLAIN,
            )
        _tensor(values).copy_(tensor)
    # Old files carry the rotary table, and some a copy of the embedding as head.
    ignored = {"lm_head.weight"} if config.tied_embeddings else set()
    unknown = [n for n in files if n not in ignored and not n.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise ConfigError(f"a Llama has no tensor {unknown[0]}", hint=ONLY_PLAIN)
    return params_N
