"""Peers that compute in different ways train one model: on two machines, on one device, in bf16."""

import os
import signal
import socket
from pathlib import Path

import msgspec
from tests.loopback.cluster import wait_until, with_sync
from tests.loopback.proof import assert_finished

from atoll.events import MachineLost, PeerRests, RoundCommitted, TrainerDied, TrainerStarted
from atoll.net import records
from atoll.net.site import KEY_FILE


def test_machines_with_ranks_one_rank_and_bf16_hold_one_state_and_any_may_die(cluster, config):
    model = msgspec.structs.replace(config.model, num_layers=2)
    config = with_sync(
        msgspec.structs.replace(config, model=model),
        mode="overlap",
        fragments=2,
        rounds=12,
        min_peers=3,  # so that none begins while one of them rests
        quorum=1.0,
        grace_floor_s=100.0,  # whoever starts again is waited for
    )
    site = ("--site", f"127.0.0.1:{free_port()}", "--machines", "2", "--devices", "2")
    ways = {"anna": site, "ben": (), "carl": ("--precision", "bf16")}
    cluster.write_run(config)
    host = cluster.start_host()
    anna, ben, carl = (cluster.join(name, *more) for name, more in ways.items())
    key = anna.home / KEY_FILE
    wait_until(key.exists, "key of the site", watch=anna)
    emil = cluster.assist("emil", str(anna.home), "--devices", "2")
    host.wait_for(RoundCommitted, lambda event: len(event.roster) == len(ways))
    assert anna.find(TrainerStarted)[0].device == "2 machines with 2 x CPU"
    (rank_1,), (rank_2,) = anna.other_ranks, emil.other_ranks

    os.kill(rank_1, signal.SIGKILL)
    died = anna.wait_for(TrainerDied)
    assert died.reason == "rank 1 of the trainer was ended by a signal: Killed"
    # And a power failure of the other machine: the peer says so, and rests until it is back.
    emil.kill()
    lost = anna.wait_for(MachineLost)
    assert (lost.name, lost.reason) == ("emil", "its line has ended")
    # It rested before, until that machine came for the first time.
    wait_until(lambda: len(anna.find(PeerRests, lambda event: event.rests)) == 2, "rest of anna")
    assert anna.find(PeerRests)[-1].why == "machines of this peer that are missing: 1"
    wait_until(lambda: not Path(f"/proc/{rank_2}").exists(), "end of rank 2, with its machine")

    emil = cluster.assist("emil", key.read_text(), "--devices", "2")
    wait_until(lambda: len(anna.find(TrainerStarted)) == 2, "trainer again", watch=anna)
    others = [*anna.other_ranks, *emil.other_ranks]
    assert len(others) == 2
    assert_finished(cluster, config, [anna, ben, carl, host], names=list(ways))
    assert len(host.find(RoundCommitted)[-1].roster) == len(ways)
    agreed = cluster.records(records.Agreed)
    assert [agreement.round for agreement in agreed] == list(range(config.sync.rounds + 1))
    for rank in others:
        wait_until(lambda rank=rank: not Path(f"/proc/{rank}").exists(), f"end of rank {rank}")
    assert not emil.has_ended(), "it waits for the peer to come again"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
