"""The weights of a run, out into a Hugging Face folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Rules

from atoll.config import RunConfig
from atoll.data.manifest import TOKENIZER_FILE
from atoll.data.shards import Dataset
from atoll.errors import ConfigError
from atoll.model.hf import Text, export_hf
from atoll.model.layout import in_model_order, layout_of


def export_weights(
    folder: Path, config: RunConfig, params_N: NDArray[np.float32], dataset: Dataset
) -> None:
    """Write the flat vector of a run's model to `folder`, with the tokenizer of its dataset.

    Raises:
        ConfigError: the folder has something in it.
        RunError: the disk would not take it.
    """
    path = dataset.folder / TOKENIZER_FILE
    start = Rules.from_file(str(path)).id_to_token(dataset.start_token)
    assert start is not None, "the tokenizer of a dataset has its start token"
    text = Text(
        tokenizer_path=path,
        document_token=start,
        document_token_id=dataset.start_token,
        sequence_length=config.data.sequence_length,
    )
    in_order_N = in_model_order(params_N, layout_of(config))
    export_hf(folder, config.model, in_order_N, text=text)


def require_free(folder: Path) -> None:
    """Check that `export_weights` may write there, before hours of training.

    Raises:
        ConfigError: the folder has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"not an empty folder: {folder}", hint="choose one that does not exist")
