"""What a simulation begins with, as data: the run, its machines, and the seed of all chance.

A `Setting` prints as Python that can be pasted into a test, and is JSON for a command line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

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
from atoll.data.manifest import MANIFEST_FILE, SPLITS, TOKENIZER_FILE, Manifest, Shard, to_bytes
from atoll.data.shards import Dataset
from atoll.ids import digest_of
from atoll.net.identity import Identity

HOST = "reef"
BUILT_IN = "built-in"
STANDBY = "lagoon"  # where a second host is, if there is one
STANDBY_BUILT_IN = "built-in of lagoon"
DATABASE = "ledger"  # where the two have their journal
PORT = 7777
TOKEN = "0" * 32
SEQUENCE_LENGTH = 8


class PeerSpec(Struct, frozen=True, kw_only=True):
    """A peer: its line (a name of `links.LINKS`), its speed, when it joins, and where it is.

    With `has_dataset` the dataset is in its cache already.
    """

    name: str
    link: str = "home-fibre"
    step_s: float = 1.0
    joins_at_s: float = 0.0
    has_dataset: bool = False
    place: str = ""


class RunSpec(Struct, frozen=True, kw_only=True):
    """The part of a run's config that a simulation varies; see `config.SyncConfig`."""

    rounds: int = 6
    inner_steps: int = 4
    pace: Literal["steps", "time"] = "steps"
    mode: Literal["blocking", "overlap"] = "blocking"
    fragments: int = 1
    in_flight: int = 1
    codec: Literal["fp64", "fp32", "bf16", "int8", "int4", "sparse"] = "fp64"
    update_codec: Literal["fp64", "fp32", "bf16", "int8", "int4", "sparse8"] = "fp64"
    min_peers: int = 1
    quorum: float = 0.6
    region_size: int = 64
    heartbeat_s: float = 1.0
    vocab_size: int = 1024  # 16 parameters for each: 1 slice up to 1024, then one more each time

    def config(self) -> RunConfig:
        """Return the config of the run. Its outer step is plain averaging, so sums can be told."""
        return RunConfig(
            name="sim",
            model=ModelConfig(
                vocab_size=self.vocab_size,
                num_layers=self.fragments,
                width=8,
                num_heads=1,
                num_kv_heads=1,
                ffn_width=8,
            ),
            data=DataConfig(
                sources=(SourceConfig(kind="preset", name="sim"),),
                tokenizer=TokenizerConfig(vocab_size=self.vocab_size),
                sequence_length=SEQUENCE_LENGTH,
            ),
            inner=InnerConfig(lr=1e-3, batch_sequences=2),
            outer=OuterConfig(lr=1.0, momentum=0.0),
            sync=SyncConfig(
                rounds=self.rounds,
                inner_steps=self.inner_steps,
                pace=self.pace,
                mode=self.mode,
                fragments=self.fragments,
                in_flight=self.in_flight,
                codec=self.codec,
                update_codec=self.update_codec,
                min_peers=self.min_peers,
                quorum=self.quorum,
                region_size=self.region_size,
                heartbeat_s=self.heartbeat_s,
                silent_s=10 * self.heartbeat_s,
            ),
        )


class Setting(Struct, frozen=True, kw_only=True):
    """`work_s`: what runs in a thread takes up to so long; `model`: see `trainer.py`.

    `far_journal`: so do the writes to the journal, which the host does not wait for. `standby`: it
    is in a database, and a second host stands by. `between_s`, `tells_round_trips`: as in
    `network.Network`.
    """

    seed: int
    peers: tuple[PeerSpec, ...]
    run: RunSpec = RunSpec()
    model: Literal["tally", "regression", "idle"] = "tally"
    host_link: str = "datacenter"
    work_s: float = 0.05
    far_journal: bool = False
    standby: bool = False
    between_s: float = 0.0
    tells_round_trips: bool = True

    def work_times(self) -> Callable[[], float]:
        """Return how long each piece of work takes that would run in a thread."""
        rng = Random(f"{self.seed} work")
        return lambda: rng.uniform(0.0, self.work_s)


@dataclass(frozen=True)
class Keys:
    """Keys that follow from the seed and a name."""

    seed: int

    def key(self, name: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(
            blake3(f"{self.seed} {name}".encode()).digest(length=32)
        )

    def identity(self, name: str) -> Identity:
        return Identity(self.key(name))


def write_dataset(folder: Path) -> Dataset:
    """Return a whole dataset, small enough to be fetched by everybody who joins."""
    folder.mkdir(parents=True)
    num_samples = 16
    content = bytes(2 * (num_samples * SEQUENCE_LENGTH + 1))
    tokenizer = b"{}"
    manifest = Manifest(
        key=digest_of(b"sim"),
        sequence_length=SEQUENCE_LENGTH,
        token_bytes=2,
        start_token=0,
        weights=(1.0,),
        tokenizer=digest_of(tokenizer),
        tokenizer_bytes=len(tokenizer),
        shards=tuple(
            Shard(
                split=split, source=0, index=0, num_samples=num_samples, digest=digest_of(content)
            )
            for split in SPLITS
        ),
    )
    for shard in manifest.shards:
        (folder / shard.file).write_bytes(content)
    (folder / TOKENIZER_FILE).write_bytes(tokenizer)
    (folder / MANIFEST_FILE).write_bytes(to_bytes(manifest))
    return Dataset.open(folder)


def shown(value: Any) -> str:
    """Return the struct as Python, without what is as by default."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{shown(one)}, " for one in value).rstrip(" ") + ")"
    if not isinstance(value, Struct):
        return repr(value)
    fields = zip(value.__struct_fields__, _defaults(value), strict=True)
    given = [
        f"{name}={shown(getattr(value, name))}"
        for name, default in fields
        if getattr(value, name) != default
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def _defaults(value: Struct) -> list[object]:
    """Return the default of each field, in order; a field without one has a value of no type."""
    defaults = list(value.__struct_defaults__)
    return [object()] * (len(value.__struct_fields__) - len(defaults)) + defaults
