"""Small corpora, and datasets made from them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
)
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset

WORDS = ("coral", "reef", "lagoon", "tide", "naïve", "Ozean", "珊瑚", "wave", "sand", "🐚")
TINY = ModelConfig(vocab_size=320, num_layers=1, width=8, num_heads=1, num_kv_heads=1, ffn_width=8)


@dataclass
class Workshop:
    """A folder with corpora, and a folder `datasets` in it."""

    folder: Path

    def text(self, number: int, *, num_words: int = 60) -> str:
        """Return a text that no other number has."""
        words = (WORDS[(number * 7 + k * k + k // 3) % len(WORDS)] for k in range(num_words))
        return f"Document {number}: {' '.join(words)}."

    def write_texts(self, name: str, *, num_texts: int) -> None:
        (self.folder / name).mkdir()
        for number in range(num_texts):
            path = self.folder / name / f"{number:04}.txt"
            path.write_bytes(self.text(number).encode())

    def config(
        self,
        *names: str,
        weights: tuple[float, ...] = (),
        tokenizer: TokenizerConfig | None = None,
        sequence_length: int = 16,
        validation_share: float = 0.1,
        model: ModelConfig = TINY,
    ) -> RunConfig:
        """Return a config whose sources are these paths."""
        sources = tuple(
            SourceConfig(kind="path", name=name, weight=weight)
            for name, weight in zip(names, weights or [1.0] * len(names), strict=True)
        )
        return RunConfig(
            name="test",
            model=model,
            data=DataConfig(
                sources=sources,
                tokenizer=tokenizer or TokenizerConfig(vocab_size=300),
                sequence_length=sequence_length,
                validation_share=validation_share,
            ),
            inner=InnerConfig(lr=1e-3, batch_sequences=1),
            sync=SyncConfig(rounds=1, inner_steps=1),
        )

    def prepare(
        self, config: RunConfig, *, progress: list[tuple[str, int]] | None = None
    ) -> Dataset:
        told: list[tuple[str, int]] = [] if progress is None else progress
        return prepare(
            config,
            base_directory=self.folder,
            directory=self.folder / "datasets",
            on_progress=lambda what, num_documents: told.append((what, num_documents)),
        )


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)
