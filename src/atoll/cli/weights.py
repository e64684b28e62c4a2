"""The weights of a run, out into a Hugging Face folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atoll.config import RunConfig
from atoll.data.manifest import TOKENIZER_FILE
from atoll.data.shards import Dataset
from atoll.model.hf import Text, export_hf


def export_weights(
    folder: Path, config: RunConfig, params_N: NDArray[np.float32], dataset: Dataset
) -> None:
    """Write the flat vector of a run's model to `folder`, with the tokenizer of its dataset.

    Raises:
        ConfigError: the folder has something in it.
        RunError: the disk would not take it.
    """
    path = dataset.folder / TOKENIZER_FILE
    token_id = dataset.tokenizer.start_token
    text = Text(
        tokenizer_path=path,
        document_token=dataset.tokenizer.name_of(token_id),
        document_token_id=token_id,
        sequence_length=config.data.sequence_length,
    )
    export_hf(folder, config.model, params_N, text=text)
