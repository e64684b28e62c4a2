"""Who comes late fetches what it needs while the others go on, and the rest if it was killed."""

import msgspec
import pytest
from tests.loopback.cluster import Cluster, Process, wait_until, with_sync
from tests.loopback.proof import assert_all_leave

from atoll.config import RunConfig
from atoll.events import (
    BytesMoved,
    MomentsFetched,
    RoundClosed,
    RoundCommitted,
    RoundPlanned,
    RoundTaken,
    StateSynced,
    read_events,
)
from atoll.exchange.statesync import PER_SOURCE
from atoll.host.state import REPLAY_ROUNDS
from atoll.model.shapes import num_parameters
from atoll.net.records import Genesis
from atoll.outer.manifest import CHUNK_BYTES
from atoll.units import MIB

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other

NUM_CHUNKS = 8
MOST_MANIFEST_BYTES = MIB // 64
SLOW = ("--max-download", "16")  # Mb/s: the state takes 17 seconds


@pytest.fixture
def wide(config: RunConfig) -> RunConfig:
    """A model whose state has eight chunks, and an update half a one."""
    model = msgspec.structs.replace(config.model, ffn_width=20_480)
    short = with_sync(config, rounds=1000, inner_steps=1, silent_s=30.0, update_codec="int4")
    wide = msgspec.structs.replace(short, model=model)
    assert (NUM_CHUNKS - 1) * CHUNK_BYTES < 8 * num_parameters(model) <= NUM_CHUNKS * CHUNK_BYTES
    return wide


def arrived(joiner: Process) -> int:
    """Return how many bytes of a state are on the disk of one that fetches it."""
    path = joiner.home / "states" / "incoming" / "state.safetensors"
    return 512 * path.stat().st_blocks if path.exists() else 0


def operate(cluster: Cluster, action: str) -> None:
    cluster.command("admin", str(cluster.run), action)


def sent_to_joiners(cluster: Cluster) -> int:
    """Return the bytes of states that all members have reported as sent."""
    homes = [*cluster.peers.iterdir(), cluster.run / "built-in"]
    stamped = [one for home in homes for one in read_events(home / "events.jsonl")[0]]
    moved = [one.event.traffic for one in stamped if isinstance(one.event, BytesMoved)]
    return sum(traffic.state_sent for traffic in moved)


def test_a_joiner_that_is_killed_in_mid_transfer_fetches_only_the_rest(cluster, wide, tmp_path):
    """Meanwhile the others go on by some rounds, whose updates it then replays."""
    (tmp_path / "peer.toml").write_text("keep_states = 9\n", encoding="utf-8")
    options = ("--config", str(tmp_path / "peer.toml"))
    host, anna, ben = cluster.start(wide, anna=options, ben=options)
    host.wait_for(RoundCommitted, lambda event: event.round > REPLAY_ROUNDS)
    operate(cluster, "pause")  # so that it is some rounds, on the slowest machine, too

    dora = cluster.join("dora", *SLOW)
    wait_until(lambda: arrived(dora) > 5 * CHUNK_BYTES, "five chunks", watch=dora)
    dora.kill()
    assert not dora.find(StateSynced), "it was done: not the moment that was meant"
    kept_at_least = arrived(dora) // CHUNK_BYTES - 1  # which is perhaps torn
    before = cluster.committed()
    operate(cluster, "resume")
    host.wait_for(RoundCommitted, lambda event: event.round >= before + 2)
    operate(cluster, "pause")
    dora = cluster.join_again("dora")
    synced = dora.wait_for(StateSynced)
    newest = cluster.committed()
    assert synced.round <= before < newest, "the rest of what it had, not the newest"
    dora.wait_for(RoundTaken, lambda event: event.round == newest)
    operate(cluster, "resume")

    state_bytes = 8 * num_parameters(wide.model)
    assert synced.kept_bytes >= kept_at_least * CHUNK_BYTES > 0
    assert synced.kept_bytes + synced.num_bytes <= state_bytes + MOST_MANIFEST_BYTES
    late = cluster.id_of("dora")
    host.wait_for(RoundCommitted, lambda event: late in event.roster)
    assert_all_leave(cluster, wide, host, [anna, ben, dora])
    in_flight = 3 * PER_SOURCE * CHUNK_BYTES  # from the others and from the built-in member
    assert sent_to_joiners(cluster) <= state_bytes + in_flight + 2 * MOST_MANIFEST_BYTES


def test_a_joiner_fetches_data_and_state_and_begins_with_the_moments_of_one_that_trains(
    cluster, config, tmp_path
):
    endless = with_sync(config, rounds=1000)
    host, anna, ben = cluster.start(endless, anna=(), ben=())
    host.wait_for(RoundCommitted, lambda event: event.round > REPLAY_ROUNDS)
    (tmp_path / "peer.toml").write_text("fetch_moments = true\n", encoding="utf-8")

    before = cluster.committed()
    options = ("--config", str(tmp_path / "peer.toml"), "--cache", str(tmp_path / "empty"))
    dora = cluster.join("dora", *options)
    synced = dora.wait_for(StateSynced)
    assert synced.how == "fetched"
    assert synced.round >= before
    (genesis,) = cluster.records(Genesis)
    assert (tmp_path / "empty" / genesis.dataset).is_dir()
    fetched = dora.wait_for(MomentsFetched)
    assert fetched.peer in (cluster.id_of("anna"), cluster.id_of("ben"))
    assert fetched.num_bytes > 8 * num_parameters(config.model)
    late = cluster.id_of("dora")
    first = host.wait_for(RoundCommitted, lambda event: late in event.roster)
    assert first.round > synced.round
    invited = host.find(RoundPlanned, lambda event: late in event.peers)[0].round
    assert before + 1 < invited, "the others went on while she started"
    closed = host.find(RoundClosed, lambda event: event.round < invited)
    assert not any(late in event.missing for event in closed), "and waited for nobody but them"
    assert_all_leave(cluster, endless, host, [anna, ben, dora])
