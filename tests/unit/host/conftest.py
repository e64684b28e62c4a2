"""A run of three rounds, made without a network: what a host leaves on its disk."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
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
    run_digest,
    template,
)
from atoll.exchange.blobs import BlobStore
from atoll.exchange.codec import CODECS
from atoll.exchange.step import apply_updates_
from atoll.host.setup import RunDirectory, open_run
from atoll.ids import Lease, LeaseId, PeerId, RoundId, digest_of, peer_id_of
from atoll.model.initial import fill_initial_
from atoll.model.layout import lay_out
from atoll.model.shapes import num_parameters
from atoll.net.records import (
    Admitted,
    Agreed,
    Committed,
    Leased,
    Planned,
    RosterEntry,
    SliceUpdate,
)
from atoll.outer.checkpoint import StateStore
from atoll.outer.layout import slice_bounds
from atoll.outer.manifest import manifest_of
from atoll.outer.nesterov import suited_to
from atoll.outer.state import PeerState

MODEL = ModelConfig(
    vocab_size=1024, num_layers=1, width=64, num_heads=2, num_kv_heads=1, ffn_width=64
)
CONFIG = RunConfig(
    name="recorded",
    model=MODEL,
    data=DataConfig(
        sources=(SourceConfig(kind="path", name="text.txt"),),
        tokenizer=TokenizerConfig(vocab_size=300),
        sequence_length=32,
    ),
    inner=InnerConfig(lr=1e-3, batch_sequences=4),
    sync=SyncConfig(rounds=5, inner_steps=2),
    outer=OuterConfig(contributors=3),  # one more than there are
)
SAMPLES = 8  # of one peer in one round
KEYS = (bytes(32), bytes([1]) * 32)
ANNA, BEN = sorted(peer_id_of(key) for key in KEYS)
TOKEN = digest_of(b"token")


@dataclass
class Recorded:
    """A run as it is written, record by record. Two peers contribute equally to each round."""

    path: Path
    opened: RunDirectory
    state: PeerState
    num_leases: int = 0
    next_sample: int = 0
    # What a test may change in the commit of each round before it is signed.
    change: Callable[[Committed], Committed] = field(default=lambda commit: commit)

    @property
    def home(self) -> Path:
        return self.path / "built-in"

    def admit(self) -> None:
        for key, name in zip(sorted(KEYS, key=peer_id_of), ("anna", "ben"), strict=True):
            admitted = Admitted(peer=peer_id_of(key), public_key=key.hex(), name=name, token=TOKEN)
            self.opened.journal.append([admitted])
        self.agree()

    def agree(self) -> None:
        digest = manifest_of(self.state, run=run_digest(CONFIG)).digest
        agreed = Agreed(round=self.state.round, state=digest, peers=(ANNA, BEN))
        self.opened.journal.append([agreed])

    def commit_round(self) -> None:
        round_id = RoundId(self.state.round + 1)
        leases = {peer: self._lease(peer) for peer in (ANNA, BEN)}
        updates = self._updates(seed=round_id)
        self.opened.journal.append([Planned(round=round_id, peers=(ANNA, BEN))])
        commit = Committed(
            round=round_id,
            fragment=0,
            codec="int8",
            update_codec="int8",
            roster=tuple(_entry(peer, lease) for peer, lease in leases.items()),
            updates=tuple(SliceUpdate(digest=digest_of(u), num_bytes=len(u)) for u in updates),
        )
        self.opened.journal.append([self.change(commit)])
        int8, layout = CODECS["int8"], lay_out(MODEL)
        outer = suited_to(CONFIG.outer, num_contributors=len(commit.roster))
        apply_updates_(self.state, updates, codec=int8, outer=outer, layout=layout)
        StateStore(self.home / "states", keep=2).save(
            self.state, manifest_of(self.state, run=run_digest(CONFIG)), now=100.0 * round_id
        )
        self.agree()

    def _lease(self, peer: PeerId) -> Lease:
        start = self.next_sample
        self.next_sample += SAMPLES
        self.num_leases += 1
        lease = Lease(id=LeaseId(self.num_leases), start=start, stop=start + SAMPLES)
        self.opened.journal.append([Leased(peer=peer, leases=(lease,))])
        return lease

    def _updates(self, *, seed: int) -> list[bytes]:
        values_N = np.random.default_rng(seed).normal(size=self.state.num_values)
        updates = [CODECS["int8"].encode(values_N[a:b]) for a, b in slice_bounds(len(values_N))]
        blobs = BlobStore(self.home / "blobs")
        for update in updates:
            blobs.put(digest_of(update), update)
        return updates


def _entry(peer: PeerId, lease: Lease) -> RosterEntry:
    return RosterEntry(
        peer=peer,
        share=0.5,
        num_tokens=SAMPLES * CONFIG.data.sequence_length,
        num_steps=2,
        mean_loss=4.0 - lease.id / 10,
        leases=(lease.id,),
        contribution=digest_of(peer.encode()),
    )


@pytest.fixture
def recorded(tmp_path: Path):
    (tmp_path / "run.toml").write_text(template(CONFIG), encoding="utf-8")
    opened = open_run(tmp_path, CONFIG, dataset=digest_of(b"dataset"))
    params_N = np.empty(num_parameters(MODEL), np.float32)
    fill_initial_(params_N, lay_out(MODEL), seed=CONFIG.seed)
    run = Recorded(tmp_path, opened, PeerState.initial(params_N))
    run.admit()
    yield run
    opened.close()


@pytest.fixture(scope="session")
def server():
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def database(server):
    """The URL of an empty Postgres database."""
    return server.new_database()
