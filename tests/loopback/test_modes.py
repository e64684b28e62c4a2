"""The faults of a round, in several ways of training and of encoding.

Each run has three peers. A slow line makes a moment long: a contribution is then under way for a
second or two.
"""

import os
import signal
from dataclasses import dataclass

import msgspec
import pytest
from tests.loopback.cluster import Process, with_sync
from tests.loopback.proof import assert_all_leave, assert_contributes, assert_finished

from atoll.config import RunConfig
from atoll.events import (
    HostStarted,
    PeerLeft,
    PhaseTimed,
    RoundClosed,
    RoundCommitted,
    RoundPlanned,
    TrainerDied,
    Training,
)
from atoll.host.audit import audit
from atoll.net import records

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other

PEERS = ["anna", "ben", "carl"]


@dataclass(frozen=True)
class Way:
    """How a run trains; with `upload` Mb/s, a contribution takes a second or two."""

    upload: str
    sync: dict[str, object]

    def of(self, config: RunConfig, **changes: object) -> RunConfig:
        """Return the config with these changes, and a layer for each of two fragments."""
        model = msgspec.structs.replace(config.model, num_layers=2)
        return with_sync(msgspec.structs.replace(config, model=model), **self.sync, **changes)


WAYS = {
    "overlap-1-int8": Way("1.6", {"mode": "overlap", "codec": "int8"}),
    "overlap-2-int4": Way("0.4", {"mode": "overlap", "fragments": 2, "codec": "int4"}),
    "in-flight-2-int8": Way(
        "1.6", {"mode": "overlap", "fragments": 2, "in_flight": 2, "codec": "int8"}
    ),
    "blocking-2-sparse": Way(
        "0.05", {"fragments": 2, "codec": "sparse", "update_codec": "sparse8"}
    ),
}
in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def begins_to_send(peer: Process) -> None:
    """Return once the peer has another contribution under way."""
    peer.wait_for_next(PhaseTimed, lambda event: event.phase == "encode")


@in_every_way
def test_who_dies_with_a_contribution_under_way_comes_back(cluster, config, way):
    # No round begins without Carl, so the run is not over before he is back.
    config = way.of(config, rounds=6, min_peers=3, grace_floor_s=5.0)
    slow = ("--max-upload", way.upload)
    host, anna, ben, carl = cluster.start(config, anna=(), ben=(), carl=slow)

    # What must hold at the end holds whether or not the round is over by then; mostly it is not.
    begins_to_send(carl)
    os.kill(*carl.trainers, signal.SIGKILL)
    assert carl.wait_for(TrainerDied).in_a_row == 1

    begins_to_send(carl)
    carl.kill()
    carl = cluster.join_again("carl")

    assert_finished(cluster, config, [anna, ben, carl, host], names=PEERS)
    assert len(host.find(RoundCommitted)[-1].roster) == 3
    assert list(audit(cluster.run)), "as `atoll verify` proves it"


def test_the_others_train_on_while_a_peer_is_frozen_and_it_comes_back(cluster, config):
    config = WAYS["overlap-1-int8"].of(config, rounds=1000)
    host, anna, ben, carl = cluster.start(config, anna=(), ben=(), carl=())
    frozen = cluster.id_of("carl")

    host.wait_for_next(Training, lambda event: event.peer == frozen)
    carl.freeze()
    assert host.wait_for(PeerLeft).peer == frozen
    after = cluster.committed()
    host.wait_for(RoundCommitted, lambda event: event.round > after + 3)
    assert frozen not in host.find(RoundCommitted)[-1].roster

    carl.thaw()
    assert_contributes(cluster, host, "carl")
    assert_all_leave(cluster, config, host, [anna, ben, carl])
    assert list(audit(cluster.run)), "as `atoll verify` proves it"


def test_the_host_dies_with_several_rounds_in_flight(cluster, config):
    """Open rounds are not in the journal: the next host plans them again, the first one first."""
    way = WAYS["in-flight-2-int8"]
    config = way.of(config, rounds=10, min_peers=3, grace_floor_s=5.0, reconnect_s=60.0)
    slow = ("--max-upload", way.upload)
    host, anna, ben, carl = cluster.start(config, anna=(), ben=(), carl=slow)

    port = host.port
    for _ in range(2):
        first = host.wait_for(RoundPlanned).round
        host.wait_for(RoundPlanned, lambda event, first=first: event.round > first)
        host.kill()
        host = cluster.launch_host(port=port)
        host.wait_for(HostStarted)

    assert not host.find(PeerLeft)
    assert_finished(cluster, config, [anna, ben, carl, host], names=PEERS)
    assert list(audit(cluster.run)), "as `atoll verify` proves it"


SLOW_STEPS = """
import sys, time
if "atoll.train.trainer" in sys.orig_argv:
    from atoll.train.inner import InnerLoop
    step = InnerLoop.step
    def slowly(self, *args, **kwargs):
        time.sleep(1.0)
        return step(self, *args, **kwargs)
    InnerLoop.step = slowly
"""


def test_by_time_a_slow_peer_brings_the_few_steps_that_it_managed(cluster, config, tmp_path):
    """By steps, its sixteen would take as many seconds, and the others five after their own."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW_STEPS)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    pace = {"pace": "time", "inner_steps": 16, "clip_to_median": 1e6}
    config = with_sync(config, rounds=5, min_peers=3, grace_floor_s=5.0, grace_factor=0.0, **pace)
    cluster.write_run(config)
    host = cluster.start_host()
    anna, ben = cluster.join("anna"), cluster.join("ben")
    carl = cluster.join("carl", env={"PYTHONPATH": path})

    assert_finished(cluster, config, [anna, ben, carl, host], names=PEERS)
    slow = cluster.id_of("carl")
    for commit in cluster.records(records.Committed)[2:]:  # once the host knows how fast they are
        by_peer = {entry.peer: entry for entry in commit.roster}
        few = by_peer.pop(slow)
        assert 1 <= few.num_steps < 16 <= max(entry.num_steps for entry in by_peer.values())
        assert few.num_steps < min(entry.num_steps for entry in by_peer.values())
        tokens = sum(entry.num_tokens for entry in commit.roster)
        assert all(e.share == pytest.approx(e.num_tokens / tokens) for e in commit.roster)
    assert not [event for event in host.find(RoundClosed) if slow in event.missing]
