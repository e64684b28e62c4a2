"""A model that can write, of a few thousand values, as `atoll export` leaves it."""

from pathlib import Path

import numpy as np

from atoll.config import ModelConfig
from atoll.data.tokenizer import START, Tokenizer
from atoll.model.hf import Text, export_hf
from atoll.model.shapes import num_parameters

TEXTS = ("The reef hides below the tide. ", "Où la vague casse, là est le récif. ", "珊瑚礁。")
MODEL = ModelConfig(
    vocab_size=300, num_layers=1, width=32, num_heads=2, num_kv_heads=2, ffn_width=48
)
MAX_TOKENS = 64


def export_tiny(folder: Path) -> Path:
    """Write a model that is random, and sure enough of itself to be interesting; return where."""
    tokenizer = Tokenizer.train(TEXTS, vocab_size=300)
    tokenizer.save(folder / "tokenizer.json")
    params_N = np.random.default_rng(0).normal(0, 0.5, num_parameters(MODEL)).astype(np.float32)
    text = Text(folder / "tokenizer.json", START, tokenizer.start_token, MAX_TOKENS)
    export_hf(folder / "reef", MODEL, params_N, text=text)
    return folder / "reef"
