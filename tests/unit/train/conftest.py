from pathlib import Path

import pytest
import torch

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


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return RunConfig(
        name="tiny",
        model=ModelConfig(
            vocab_size=300, num_layers=2, width=16, num_heads=4, num_kv_heads=2, ffn_width=32
        ),
        data=DataConfig(
            sources=(SourceConfig(kind="path", name="texts"),),
            tokenizer=TokenizerConfig(vocab_size=300),
            sequence_length=16,
            validation_share=0.2,
        ),
        inner=InnerConfig(lr=1e-2, batch_sequences=4, warmup_steps=2, z_loss=1e-4),
        sync=SyncConfig(rounds=4, inner_steps=5),
        seed=7,
    )


@pytest.fixture(scope="session")
def dataset(config, tmp_path_factory) -> Dataset:
    directory: Path = tmp_path_factory.mktemp("corpus")
    (directory / "texts").mkdir()
    for number in range(40):
        words = " ".join(f"{number} islands make {number * k} atolls" for k in range(12))
        (directory / "texts" / f"{number:02}.txt").write_text(words)
    return prepare(
        config,
        base_directory=directory,
        directory=directory / "datasets",
        on_progress=lambda doing, count: None,
    )
