"""Loops of other people are peers like ours: each example, in one run, on a real host."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.loopback.cluster import PATIENCE_S, with_sync
from tests.loopback.proof import assert_all_hold_the_final_state, assert_run_is_sound

from atoll.events import RoundCommitted
from atoll.net import records
from atoll.train.shared import vectors_path

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {"plain": "plain_loop.py", "titan": "torchtitan_style.py", "hf": "hf_trainer.py"}

pytestmark = pytest.mark.timeout(300)  # three processes import torch, one transformers as well


def test_three_kinds_of_loops_train_one_model(cluster, config):
    data = msgspec.structs.replace(config.data, own=True)
    config = with_sync(
        msgspec.structs.replace(config, data=data),
        mode="overlap",
        quorum=1.0,
        min_peers=3,
        grace_floor_s=100.0,
    )
    cluster.write_run(config)
    host = cluster.start_host()
    loops = []
    try:
        for name, script in NAMES.items():
            home = cluster.peers / name
            command = [sys.executable, str(EXAMPLES / script)]
            command += [str(cluster.run / "run.toml"), cluster.invite, str(home)]
            with home.with_suffix(".log").open("wb") as log:
                loops.append(subprocess.Popen(command, stdout=log, stderr=log))
        assert [loop.wait(timeout=2 * PATIENCE_S) for loop in loops] == [0] * len(loops)
    finally:
        for loop, name in zip(loops, NAMES, strict=False):
            loop.kill()  # its agent leaves with it
            loop.wait()
            sys.stdout.write((cluster.peers / name).with_suffix(".log").read_text())
            vectors_path(cluster.peers / name, 1).unlink(missing_ok=True)

    assert host.wait() == 0
    assert_run_is_sound(cluster, config, rounds=config.sync.rounds)
    assert_all_hold_the_final_state(cluster, config, NAMES)
    peers = {cluster.id_of(name) for name in NAMES}
    assert all(set(event.roster) == peers for event in host.find(RoundCommitted))
    samples = config.sync.inner_steps * config.inner.batch_sequences
    leased = [lease for record in cluster.records(records.Leased) for lease in record.leases]
    assert {lease.stop - lease.start for lease in leased} <= set(range(1, samples + 1))
