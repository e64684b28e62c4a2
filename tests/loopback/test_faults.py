"""Whatever dies or freezes, and whenever: the others finish every round in the same state.

To hit a moment, a peer with a slow line makes it long: what takes a millisecond on loopback then
takes seconds, and the test acts as soon as the process in question reports that it has begun.
"""

import os
import signal

import pytest
from tests.loopback.cluster import SLOW, Cluster, Process, wait_until, with_sync
from tests.loopback.proof import assert_all_leave, assert_finished, digest_on_disk

from atoll.config import RunConfig
from atoll.events import (
    PeerLeft,
    PhaseTimed,
    RoundClosed,
    RoundCommitted,
    StateSynced,
    Stopped,
    TrainerDied,
    Training,
)
from atoll.net import records

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other


@pytest.fixture
def patient(config: RunConfig) -> RunConfig:
    """The grace time is long enough for a slow line, so that its peer is in every round."""
    return with_sync(config, rounds=5, grace_floor_s=5.0)


def test_a_contributor_is_killed_while_it_uploads(cluster, patient):
    host, anna, ben, carl = cluster.start(patient, anna=(), ben=(), carl=SLOW)

    encoded = carl.wait_for_next(PhaseTimed, lambda event: event.phase == "encode")
    carl.kill()

    closed = host.wait_for(RoundClosed, lambda event: event.round == encoded.round)
    assert cluster.id_of("carl") not in closed.roster
    assert len(closed.roster) == 2
    assert_finished(cluster, patient, [anna, ben, host], names=["anna", "ben"])


def test_a_trainer_is_killed_and_started_again(cluster, config):
    config = with_sync(config, rounds=30)
    host, anna, ben = cluster.start(config, anna=(), ben=())

    os.kill(*anna.trainers, signal.SIGKILL)

    died = anna.wait_for(TrainerDied)
    assert died.in_a_row == 1
    assert "Killed" in died.reason
    host.wait_for_next(RoundCommitted, lambda event: len(event.roster) == 2)
    assert not host.find(PeerLeft), "the peer stays while its trainer starts"
    assert_finished(cluster, config, [anna, ben, host], names=["anna", "ben"])


def kill_host_between_close_and_commit(cluster: Cluster, host: Process) -> Process:
    """Kill the host and start it again, as often as it takes; return the newest one."""
    for _ in range(3):
        closed = host.wait_for_next(RoundClosed)
        host.kill()
        is_hit = cluster.committed() == closed.round - 1
        host = cluster.start_host(port=host.port)
        if is_hit:
            return host
    raise AssertionError("the round was committed before the host died, three times")


def test_the_host_is_killed_between_close_and_commit(cluster, patient):
    host, anna, ben = cluster.start(patient, anna=SLOW, ben=SLOW)

    host = kill_host_between_close_and_commit(cluster, host)

    assert_finished(cluster, patient, [anna, ben, host], names=["anna", "ben"])


def test_everything_is_killed_and_started_again(cluster, patient):
    host, anna, ben = cluster.start(patient, anna=SLOW, ben=SLOW)

    host.wait_for_next(RoundClosed)
    for process in (host, anna, ben):
        process.kill()

    agreed = {record.round: record.state for record in cluster.records(records.Agreed)}
    newest = agreed[max(agreed)]
    assert {digest_on_disk(cluster, name, patient) for name in ("anna", "ben")} == {newest}
    host = cluster.start_host()
    anna, ben = cluster.join("anna"), cluster.join("ben")
    assert_finished(cluster, patient, [anna, ben, host], names=["anna", "ben"])
    assert not anna.find(StateSynced), "its own disk had all that it needed"


def test_a_frozen_peer_costs_one_wait_and_comes_back(cluster, config):
    endless = with_sync(config, rounds=1000)
    host, anna, ben, carl = cluster.start(endless, anna=(), ben=(), carl=())
    frozen = cluster.id_of("carl")

    host.wait_for_next(Training, lambda event: event.peer == frozen)
    carl.freeze()
    left = host.wait_for(PeerLeft)
    assert left.peer == frozen
    after = cluster.committed()
    host.wait_for(RoundCommitted, lambda event: event.round > after + 3)
    assert frozen not in host.find(RoundCommitted)[-1].roster

    carl.thaw()
    host.wait_for_next(RoundCommitted, lambda event: frozen in event.roster)
    assert_all_leave(cluster, endless, host, [anna, ben, carl])


def test_a_late_joiner_fetches_everything_while_the_others_go_on(cluster, config, tmp_path):
    endless = with_sync(config, rounds=1000)
    host, anna, ben = cluster.start(endless, anna=(), ben=())
    host.wait_for(RoundCommitted, lambda event: event.round > 10)

    dora = cluster.join("dora", "--cache", str(tmp_path / "empty"))
    before = cluster.committed()
    synced = dora.wait_for(StateSynced)
    assert synced.how == "fetched"
    assert synced.round >= before
    (genesis,) = cluster.records(records.Genesis)
    assert (tmp_path / "empty" / genesis.dataset).is_dir()
    late = cluster.id_of("dora")
    first = host.wait_for(RoundCommitted, lambda event: late in event.roster)
    assert first.round > synced.round
    waits = [e.seconds for e in host.find(RoundCommitted, lambda e: e.round > before)]
    assert max(waits) < 10, "the others had to wait"
    assert_all_leave(cluster, endless, host, [anna, ben, dora])


def test_who_leaves_by_ctrl_c_gives_its_leases_back(cluster, config):
    endless = with_sync(config, rounds=1000, grace_floor_s=5.0, reconnect_s=600.0)
    host, anna, ben, carl = cluster.start(endless, anna=(), ben=(), carl=SLOW)
    gone = cluster.id_of("carl")

    carl.wait_for_next(PhaseTimed, lambda event: event.phase == "encode")  # it holds leases
    carl.interrupt()
    assert carl.wait() == 0

    host.wait_for(PeerLeft, lambda event: event.peer == gone)
    wait_until(
        lambda: [r for r in cluster.records(records.Released) if r.peer == gone], "its leases"
    )
    after = cluster.committed()
    host.wait_for(RoundCommitted, lambda event: event.round > after + 2)
    assert [event.peer for event in host.find(PeerLeft)] == [gone]
    assert_all_leave(cluster, endless, host, [anna, ben])


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
    config = with_sync(config, rounds=2, min_peers=1, reconnect_s=60.0)
    host, anna, ben = cluster.start(config, anna=(), ben=())
    ben.kill()
    host.wait_for(Stopped)
    ben = cluster.join_again("ben")
    assert_finished(cluster, config, [anna, ben, host], names=["anna", "ben"])
