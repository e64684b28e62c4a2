"""Three peers train one model: the same weights everywhere, and better ones."""

import numpy as np
import pytest
from tests.loopback.cluster import with_sync
from tests.loopback.proof import assert_every_byte_is_on_record, assert_finished, state_on_disk

from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.events import RoundCommitted, StateAgreed
from atoll.model.flat import load_flat_
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters
from atoll.net import records
from atoll.train.evaluate import validation_loss

PEERS = ["anna", "ben", "carl"]
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


def test_three_peers_ten_rounds(cluster, long_config):
    cluster.write_run(long_config)
    host = cluster.start_host()
    peers = [cluster.join(name) for name in PEERS]

    assert_finished(cluster, long_config, [*peers, host], names=PEERS)
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
