"""Where the model comes from that one talks to: it may become a newer one while it is used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from atoll.data.manifest import TOKENIZER_FILE
from atoll.data.tokenizer import Tokenizer, check_fits
from atoll.model.flat import load_flat_
from atoll.model.hf import CONFIG_FILE, import_hf
from atoll.model.hf_config import trained_length
from atoll.model.layout import lay_out
from atoll.model.llama import Llama


@dataclass(frozen=True, slots=True, eq=False)
class Speaker:
    """A model that can write, and what there is to know of it."""

    name: str  # of the run, or of the folder
    version: str  # which of its states; empty: there is only one
    model: Llama
    tokenizer: Tokenizer
    max_tokens: int  # as many as it was trained on at once

    def tokens_of(self, text: str) -> list[int]:
        """Return the text as the beginning of a document."""
        return [self.tokenizer.start_token, *self.tokenizer.encode(text)]


class Source(Protocol):
    def newer(self) -> Speaker | None:
        """Return the newest model if it has not been returned yet; those before are then void.

        None: there is no newer one, or none at all yet.
        """
        ...


class ExportedFolder:
    """A model in Hugging Face's layout: ours, or any other Llama that comes with a tokenizer."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._is_new = True

    def newer(self) -> Speaker | None:
        """Return the model, the first time.

        Raises:
            ConfigError: it is damaged, or no model that this package can be.
        """
        if not self._is_new:
            return None
        self._is_new = False
        tokenizer = Tokenizer.load(self._folder / TOKENIZER_FILE)
        config, params_N = import_hf(self._folder)
        check_fits(tokenizer, config.vocab_size)
        model = Llama(config).to(self._device)
        load_flat_(model, params_N, lay_out(config))
        max_tokens = trained_length((self._folder / CONFIG_FILE).read_bytes())
        return Speaker(self._folder.resolve().name, "", model, tokenizer, max_tokens)
