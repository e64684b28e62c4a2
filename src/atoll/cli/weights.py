"""The weights of a run, out into a Hugging Face folder or a GGUF file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Rules

from atoll.config import RunConfig
from atoll.data.tokenizer import Tokenizer
from atoll.errors import ConfigError
from atoll.model.card import Origin, model_card
from atoll.model.gguf_file import export_gguf
from atoll.model.hf import Text, export_hf
from atoll.model.layout import in_model_order, layout_of

GGUF_SUFFIX = ".gguf"


class Exported(NamedTuple):
    """What goes out; `params_N` in the run's layout."""

    config: RunConfig
    params_N: NDArray[np.float32]
    tokenizer: Path  # the `tokenizer.json` that the model reads with
    origin: Origin


def export_weights(out: Path, exported: Exported) -> None:
    """Write a run's model to a folder, or to a file whose name ends in .gguf.

    Raises:
        ConfigError: the folder has something in it, or the file exists.
        RunError: the disk would not take it.
    """
    config, path = exported.config, exported.tokenizer
    start_token = Tokenizer.load(path).start_token
    start = Rules.from_file(str(path)).id_to_token(start_token)
    assert start is not None, "it was found by its name"
    text = Text(
        tokenizer_path=path,
        document_token=start,
        document_token_id=start_token,
        sequence_length=config.data.sequence_length,
        card=model_card(config, exported.origin),
    )
    in_order_N = in_model_order(exported.params_N, layout_of(config))
    if out.suffix == GGUF_SUFFIX:
        export_gguf(out, config.model, in_order_N, text=text, name=config.name)
    else:
        export_hf(out, config.model, in_order_N, text=text)


def require_free(folder: Path) -> None:
    """Check that `export_weights` may write there, before hours of training.

    Raises:
        ConfigError: the folder has something in it.
    """
    is_file = folder.suffix == GGUF_SUFFIX
    if folder.exists() and (is_file or not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"not an empty folder: {folder}", hint="choose one that does not exist")
