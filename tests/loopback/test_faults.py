"""Moments at which a process dies that no line can make longer; those are in test_matrix.py."""

import os

import pytest
from tests.loopback.cluster import with_sync
from tests.loopback.proof import assert_finished

from atoll.events import RoundPlanned, Stopped, TrainerDied

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other


DIES_WHILE_IT_SAVES = """
import os, signal, sys
if "atoll.train.trainer" in sys.orig_argv:
    import atoll.train.optim
    save = atoll.train.optim.save_optimizer
    def die_once(path, *args, **kwargs):
        if not os.path.exists({flag!r}):
            open({flag!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return save(path, *args, **kwargs)
    atoll.train.optim.save_optimizer = die_once
"""


def test_a_trainer_that_dies_while_it_saves_does_its_work_again(cluster, config, tmp_path):
    (tmp_path / "site").mkdir()
    script = DIES_WHILE_IT_SAVES.format(flag=str(tmp_path / "died"))
    (tmp_path / "site" / "sitecustomize.py").write_text(script)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    config = with_sync(config, rounds=2, min_peers=1)
    cluster.write_run(config)
    host = cluster.start_host()
    anna = cluster.join("anna", env={"PYTHONPATH": path})
    anna.wait_for(TrainerDied)
    assert_finished(cluster, config, [anna, host], names=["anna"])


def test_who_was_away_at_the_end_gets_the_last_state_when_it_comes_back(cluster, config):
    # No round begins without both, and the last one ends without Ben.
    config = with_sync(config, rounds=3, min_peers=2, reconnect_s=60.0)
    host, anna, ben = cluster.start(config, anna=(), ben=())
    host.wait_for(RoundPlanned, lambda event: event.round == config.sync.rounds)
    ben.kill()
    host.wait_for(Stopped)
    ben = cluster.join_again("ben")
    assert_finished(cluster, config, [anna, ben, host], names=["anna", "ben"])
