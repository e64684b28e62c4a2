"""Whatever dies or freezes, and whenever: the others finish every round in the same state.

To hit a moment, a peer with a slow line makes it long: what takes a millisecond on loopback then
takes seconds, and the test acts as soon as the process in question reports that it has begun.
"""

import os
import signal

import msgspec
import pytest

from atoll.config import RunConfig
from atoll.events import (
    HostStarted,
    PeerJoined,
    PeerLeft,
    PhaseTimed,
    RoundClosed,
    RoundCommitted,
    RoundPlanned,
    StateSynced,
    Training,
    TrainerDied,
)
from atoll.ids import PeerId
from atoll.net import records
from tests.loopback.cluster import Cluster, Process, wait_until
from tests.loopback.proof import (
    assert_all_hold_the_final_state,
    assert_run_is_sound,
    digest_on_disk,
)

SLOW = ("--max-upload", "0.8")  # Mb/s: two seconds for what goes in a moment otherwise
EARLY = 2  # rounds that pass before something happens


def with_sync(config: RunConfig, **changes: object) -> RunConfig:
    return msgspec.structs.replace(config, sync=msgspec.structs.replace(config.sync, **changes))


@pytest.fixture
def patient(config: RunConfig) -> RunConfig:
    """The grace time is long enough for a slow line, so that its peer is in every round."""
    return with_sync(config, rounds=5, grace_floor_s=5.0)


def id_of(cluster: Cluster, name: str) -> PeerId:
    (admitted,) = [r for r in cluster.records(records.Admitted) if r.name == name]
    return admitted.peer


def start(cluster: Cluster, config: RunConfig, **options: tuple[str, ...]) -> list[Process]:
    """Start host and peers, and return them once all are in a round that is committed."""
    cluster.write_run(config)
    host = cluster.start_host()
    peers = [cluster.join(name, *more) for name, more in options.items()]
    host.wait_for(RoundCommitted, lambda event: len(event.roster) == len(peers))
    return [host, *peers]


def assert_finished(
    cluster: Cluster, config: RunConfig, processes: list[Process], *, names: list[str]
) -> None:
    """Check that these processes end well, and all that the run promises."""
    assert [process.wait() for process in processes] == [0] * len(processes)
    assert_run_is_sound(cluster, config, rounds=config.sync.rounds)
    assert_all_hold_the_final_state(cluster, config, names)


def test_a_contributor_is_killed_while_it_uploads(cluster, patient):
    host, anna, ben, carl = start(cluster, patient, anna=(), ben=(), carl=SLOW)

    encoded = carl.wait_for_next(PhaseTimed, lambda event: event.phase == "encode")
    carl.kill()

    closed = host.wait_for(RoundClosed, lambda event: event.round == encoded.round)
    assert id_of(cluster, "carl") not in closed.roster
    assert len(closed.roster) == 2
    assert_finished(cluster, patient, [anna, ben, host], names=["anna", "ben"])


def test_a_reducer_is_killed_after_the_close(cluster, patient):
    host, anna, ben, carl = start(cluster, patient, anna=(), ben=(), carl=SLOW)
    lost = id_of(cluster, "carl")

    closed = host.wait_for_next(RoundClosed)
    carl.kill()

    replaced = host.wait_for(RoundPlanned, lambda event: lost not in event.reducers)
    assert replaced.round == closed.round, "the round was over: not the moment that was meant"
    assert_finished(cluster, patient, [anna, ben, host], names=["anna", "ben"])


def test_a_trainer_is_killed_and_started_again(cluster, config):
    config = with_sync(config, rounds=30)
    host, anna, ben = start(cluster, config, anna=(), ben=())

    os.kill(anna.trainer, signal.SIGKILL)

    died = anna.wait_for(TrainerDied)
    assert died.in_a_row == 1
    assert "Killed" in died.reason
    host.wait_for_next(RoundCommitted, lambda event: len(event.roster) == 2)
    assert not host.find(PeerLeft), "the peer stays while its trainer starts"
    assert_finished(cluster, config, [anna, ben, host], names=["anna", "ben"])


def kill_host_between_close_and_commit(cluster: Cluster, host: Process) -> Process:
    """Kill the host and start it again, as often as it takes; return the newest one."""
    address = host.wait_for(HostStarted).address
    for _ in range(3):
        closed = host.wait_for_next(RoundClosed)
        host.kill()
        is_hit = cluster.committed() == closed.round - 1
        host = cluster.start_host(port=int(address.rpartition(":")[2]))
        if is_hit:
            return host
    raise AssertionError("the round was committed before the host died, three times")


def test_the_host_is_killed_between_close_and_commit(cluster, patient):
    host, anna, ben = start(cluster, patient, anna=SLOW, ben=SLOW)

    host = kill_host_between_close_and_commit(cluster, host)

    assert_finished(cluster, patient, [anna, ben, host], names=["anna", "ben"])


def test_everything_is_killed_and_started_again(cluster, patient):
    host, anna, ben = start(cluster, patient, anna=SLOW, ben=SLOW)

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
    host, anna, ben, carl = start(cluster, endless, anna=(), ben=(), carl=())
    frozen = id_of(cluster, "carl")

    host.wait_for_next(Training, lambda event: event.peer == frozen)
    carl.freeze()
    left = host.wait_for(PeerLeft)
    assert left.peer == frozen
    after = cluster.committed()
    host.wait_for(RoundCommitted, lambda event: event.round > after + 3)
    assert frozen not in host.find(RoundCommitted)[-1].roster

    carl.thaw()
    host.wait_for_next(RoundCommitted, lambda event: frozen in event.roster)
    stop(cluster, endless, host, [anna, ben, carl])


def stop(cluster: Cluster, config: RunConfig, host: Process, peers: list[Process]) -> None:
    """Press Ctrl-C everywhere, and check what is left."""
    for process in (*peers, host):
        process.interrupt()
    assert [process.wait() for process in (*peers, host)] == [0] * (len(peers) + 1)
    assert_run_is_sound(cluster, config, rounds=cluster.committed())


def test_a_late_joiner_fetches_everything_while_the_others_go_on(cluster, config, tmp_path):
    endless = with_sync(config, rounds=1000)
    host, anna, ben = start(cluster, endless, anna=(), ben=())
    host.wait_for(RoundCommitted, lambda event: event.round > 10)

    dora = cluster.join("dora", "--cache", str(tmp_path / "empty"))
    before = cluster.committed()
    synced = dora.wait_for(StateSynced)
    assert synced.how == "fetched"
    assert synced.round >= before
    late = id_of(cluster, "dora")
    first = host.wait_for(RoundCommitted, lambda event: late in event.roster)
    assert first.round > synced.round
    waits = [e.seconds for e in host.find(RoundCommitted, lambda e: e.round > before)]
    assert max(waits) < 10, "the others had to wait"
    stop(cluster, endless, host, [anna, ben, dora])


def test_who_leaves_by_ctrl_c_gives_its_leases_back(cluster, config):
    endless = with_sync(config, rounds=1000, grace_floor_s=5.0, reconnect_s=60.0)
    host, anna, ben, carl = start(cluster, endless, anna=(), ben=(), carl=SLOW)
    gone = id_of(cluster, "carl")

    carl.wait_for_next(PhaseTimed, lambda event: event.phase == "encode")  # it holds leases
    carl.interrupt()
    assert carl.wait() == 0

    host.wait_for(PeerLeft, lambda event: event.peer == gone)
    wait_until(
        lambda: [r for r in cluster.records(records.Released) if r.peer == gone], "its leases"
    )
    after = cluster.committed()
    host.wait_for(RoundCommitted, lambda event: event.round > after + 2)
    assert len(host.find(PeerJoined)) == 3, "nobody else left"
    stop(cluster, endless, host, [anna, ben])
