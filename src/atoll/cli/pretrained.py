"""A run that begins with somebody's weights: what a Hugging Face folder says about it.

    folder/config.json --> [model]      *.safetensors --> RUN/initial/     tokenizer.json --> RUN/

Shapes: N values.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from atoll.cli.recipes import RECIPES
from atoll.config import ModelConfig, RunConfig, TokenizerConfig
from atoll.data.manifest import TOKENIZER_FILE
from atoll.data.tokenizer import Tokenizer, check_fits
from atoll.errors import ConfigError
from atoll.exchange.initial import INITIAL_FOLDER, save_initial
from atoll.model.presets import PRESETS
from atoll.model.shapes import num_parameters

LR_SHARE: Final = 0.1  # of a recipe's lr: from scratch it would undo much of what is learnt


@dataclass(frozen=True, slots=True, eq=False)
class Pretrained:
    model: ModelConfig
    params_N: NDArray[np.float32]  # in the order of the model
    tokenizer: Path

    @property
    def nearest(self) -> str:
        """The recipe for the preset that is nearest in size."""
        size = self.params_N.size
        return min(RECIPES, key=lambda name: abs(np.log(num_parameters(PRESETS[name]) / size)))

    def begin(self, config: RunConfig) -> RunConfig:
        """Return the run with this model, tokenizer and a smaller lr, but without the weights."""
        return replace(
            config,
            model=self.model,
            data=replace(config.data, tokenizer=TokenizerConfig(kind="file", path=TOKENIZER_FILE)),
            inner=replace(config.inner, lr=config.inner.lr * LR_SHARE),
        )

    def copy_to(self, run: Path) -> str:
        """Put weights and tokenizer into the directory of the run; return what names the weights.

        Raises:
            RunError: the disk is full.
        """
        shutil.copyfile(self.tokenizer, run / TOKENIZER_FILE)
        return save_initial(run / INITIAL_FOLDER, self.params_N)


def read_pretrained(folder: Path) -> Pretrained:
    """Return what is in a Hugging Face folder.

    Raises:
        ConfigError: its model is no Llama, its tokenizer is missing, or they do not go together.
    """
    # Imported here: torch takes seconds, which is too long for a --help.
    from atoll.model.hf import import_hf

    if not folder.is_dir():
        raise ConfigError(f"--init-from {folder}: no such folder", hint="fetch the model first")
    tokenizer = folder / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise ConfigError(
            f"--init-from {folder}: there is no {TOKENIZER_FILE}",
            hint="save the tokenizer in its fast form, or fetch that file as well",
        )
    model, params_N = import_hf(folder)
    check_fits(Tokenizer.load(tokenizer), model.vocab_size)
    return Pretrained(model, params_N, tokenizer)
