"""Peers that compute in different ways train one model: on two devices, on one, in bf16."""

import os
import signal
from pathlib import Path

import msgspec
from tests.loopback.cluster import wait_until, with_sync
from tests.loopback.proof import assert_finished

from atoll.events import RoundCommitted, TrainerDied, TrainerStarted
from atoll.net import records


def test_two_ranks_one_rank_and_bf16_hold_one_state_and_a_rank_may_die(cluster, config):
    model = msgspec.structs.replace(config.model, num_layers=2)
    config = with_sync(
        msgspec.structs.replace(config, model=model),
        mode="overlap",
        fragments=2,
        rounds=12,
        quorum=1.0,
        grace_floor_s=100.0,  # whoever starts again is waited for
    )
    ways = {"anna": ("--devices", "2"), "ben": (), "carl": ("--precision", "bf16")}
    host, anna, ben, carl = cluster.start(config, **ways)
    assert anna.find(TrainerStarted)[0].device == "2 x CPU"

    (second,) = anna.other_ranks
    os.kill(second, signal.SIGKILL)
    died = anna.wait_for(TrainerDied)
    assert died.reason == "rank 1 of the trainer was ended by a signal: Killed"
    assert died.in_a_row == 1
    wait_until(lambda: set(anna.other_ranks) - {second}, "second rank again", watch=anna)
    (third,) = anna.other_ranks

    assert_finished(cluster, config, [anna, ben, carl, host], names=list(ways))
    assert len(host.find(RoundCommitted)[-1].roster) == 3
    agreed = cluster.records(records.Agreed)
    assert [agreement.round for agreement in agreed] == list(range(config.sync.rounds + 1))
    wait_until(lambda: not Path(f"/proc/{third}").exists(), "end of the second rank")
