"""Three peers train one model: the same weights everywhere, and better ones."""

import os

import numpy as np
import pytest
from tests.loopback.cluster import with_sync
from tests.loopback.proof import assert_every_byte_is_on_record, assert_finished, state_on_disk

from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.events import RoundCommitted, StateAgreed, read_events
from atoll.model.flat import load_flat_
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters
from atoll.net import records
from atoll.train.evaluate import validation_loss

PEERS = {"anna": 3600, "ben": -3600, "carl": 0}  # by how many seconds their clocks are off
ROUNDS = 10
MARGIN_NATS = 1.0  # at the least;


@pytest.fixture(scope="module")
def long_config(config):
    return with_sync(config, rounds=ROUNDS, inner_steps=6, min_peers=3)


def loss_of(params_N, config, dataset) -> float:
    model = Llama(config.model)
    load_flat_(model, params_N, layout_of(config))
    batches = Batches(dataset, seed=config.seed)
    return validation_loss(model, batches, batch_sequences=16, num_samples=64)


SHIFTED_CLOCK = """
import time
true_time = time.time
time.time = lambda: true_time() + {seconds}
"""


def test_three_peers_ten_rounds_whatever_their_clocks_say(cluster, long_config, tmp_path):
    cluster.write_run(long_config)
    host = cluster.start_host()
    peers = []
    for name, seconds in PEERS.items():
        (tmp_path / name).mkdir()
        code = SHIFTED_CLOCK.format(seconds=seconds)
        (tmp_path / name / "sitecustomize.py").write_text(code, encoding="utf-8")
        path = os.pathsep.join(filter(None, (str(tmp_path / name), os.environ.get("PYTHONPATH"))))
        peers.append(cluster.join(name, env={"PYTHONPATH": path}))

    assert_finished(cluster, long_config, [*peers, host], names=list(PEERS))
    (hers, *_), (his, *_) = (read_events(peer.home / "events.jsonl")[0] for peer in peers[:2])
    assert 7100 < hers.at - his.at < 7300, "the clocks were not off"
    assert all(len(c.roster) == 3 for c in host.find(RoundCommitted)), "nobody failed"
    # Three peers and the built-in member; the last to report may come after the majority.
    assert all(len(agreed.peers) >= 2 for agreed in host.find(StateAgreed, lambda e: e.round > 0))

    assert_every_byte_is_on_record(cluster, peers)

    genesis = cluster.records(records.Genesis)[0]
    dataset = Dataset.open(cluster.cache / genesis.dataset)
    initial_N = np.zeros(num_parameters(long_config.model), dtype=np.float32)
    fill_initial_(initial_N, layout_of(long_config), seed=long_config.seed)
    before = loss_of(initial_N, long_config, dataset)
    after = loss_of(state_on_disk(cluster, "anna", long_config).params_N, long_config, dataset)
    assert after < before - MARGIN_NATS
