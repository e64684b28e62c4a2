"""Peers of unequal speed, with rounds that last as long as the median peer needs."""

import os

import pytest
from tests.loopback.cluster import with_sync
from tests.loopback.proof import assert_finished

from atoll.events import RoundClosed
from atoll.net import records

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other

PEERS = ["anna", "ben", "carl"]
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
