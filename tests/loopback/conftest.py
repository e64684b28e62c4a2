"""What the tests of this folder share: a small text, a run that trains on it in seconds."""

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.loopback.cluster import Cluster
from tests.postgres import Server

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    OuterConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
)

# Whoever runs the tests in the background of a shell ignores Ctrl-C, and so would our processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

NOUNS = ("reef", "tide", "island", "lagoon", "wave", "boat", "crab", "shell", "palm", "gull")
VERBS = ("carries", "follows", "hides", "breaks", "finds", "leaves", "keeps", "crosses", "joins")
PLACES = ("near the shore", "below the cliff", "at night", "in the morning", "after the rain")
MODEL = ModelConfig(  # 205,000 values: four slices
    vocab_size=512, num_layers=1, width=64, num_heads=4, num_kv_heads=4, ffn_width=640
)
SYNC = SyncConfig(
    rounds=4,
    inner_steps=4,
    min_peers=2,
    grace_floor_s=0.5,
    heartbeat_s=0.2,
    silent_s=2.0,
    reconnect_s=4.0,
)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers of this session."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if own.name.startswith("popen-") else own


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 kB of sentences with a grammar, the same in every session."""
    chance = random.Random(0)
    sentences = (
        f"The {chance.choice(NOUNS)} {chance.choice(VERBS)} the {chance.choice(NOUNS)} "
        f"{chance.choice(PLACES)}."
        for _ in range(7000)
    )
    path = tmp_path_factory.mktemp("text") / "islands.txt"
    path.write_text(" ".join(sentences), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def config(text: Path) -> RunConfig:
    """A run whose rounds take a second."""
    return RunConfig(
        name="loopback",
        model=MODEL,
        data=DataConfig(
            sources=(SourceConfig(kind="path", name=str(text)),),
            tokenizer=TokenizerConfig(vocab_size=300),
            sequence_length=32,
        ),
        inner=InnerConfig(lr=3e-3, batch_sequences=4, fresh_warmup_steps=2),
        sync=SYNC,
        outer=OuterConfig(lr=0.7, momentum=0.5),
    )


@pytest.fixture
def cluster(tmp_path: Path, shared: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, cache=shared / "datasets")
    try:
        yield cluster
    finally:
        cluster.close()
        sys.stdout.write(cluster.report())  # pytest shows it if the test failed


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def database(server: Server) -> str:
    """The URL of an empty Postgres database."""
    return server.new_database()
