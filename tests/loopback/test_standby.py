"""Two hosts, one journal in a real Postgres: whatever happens to the leader, one of them leads."""

import re
from pathlib import Path

import pytest
from tests.loopback.cluster import Cluster, Process, wait_until, with_sync
from tests.loopback.proof import (
    assert_all_leave,
    assert_finished,
    assert_no_sample_counts_twice,
)

from atoll.events import HostStandsBy, HostStarted, PeerLeft, RoundCommitted
from atoll.host.stores import read_journal
from atoll.net.records import Committed, Led
from atoll.peer.home import read_run_file

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other

LEAD_S = "2.0"
ENDLESS = 1000
PASSPHRASE = "reef tide island lagoon"


@pytest.fixture
def rounds() -> int:
    return 20


@pytest.fixture
def config(config, rounds):
    return with_sync(config, rounds=rounds)


@pytest.fixture
def hosts(cluster: Cluster, config, database: str) -> tuple[Process, Process]:
    """A host, and a standby on another machine."""
    cluster.write_run(config)
    host = cluster.start_host("--journal", database, "--lead-s", LEAD_S)
    return host, start_standby(cluster, bring_keys(cluster))


@pytest.fixture
def pair(cluster: Cluster, hosts) -> tuple[Process, Process]:
    """The two, and two peers at work that have come to know of both."""
    host, standby = hosts
    for name in ("anna", "ben"):
        cluster.join(name)
    host.wait_for(RoundCommitted, lambda event: len(event.roster) == 2)
    wait_until_known(cluster, standby)
    return host, standby


def bring_keys(cluster: Cluster) -> Path:
    """Bring the run's keys to the directory of another machine, as an operator does."""
    there = cluster.run.with_name("standby")
    secret = cluster.run / "passphrase"
    secret.write_text(PASSPHRASE)
    sealed = cluster.run / "keys.sealed"
    options = ("--passphrase-file", str(secret))
    cluster.command("keys", str(cluster.run), "--export", str(sealed), *options)
    cluster.command("keys", str(there), "--import", str(sealed), *options)
    assert b"PRIVATE KEY" not in sealed.read_bytes()
    return there


def start_standby(cluster: Cluster, there: Path) -> Process:
    standby = cluster.launch_host("--standby", "--lead-s", LEAD_S, run=there)
    standby.wait_for(HostStandsBy)
    return standby


def wait_until_known(cluster: Cluster, standby: Process) -> None:
    """Return once both peers have heard from the leader where this host stands by."""
    place = standby.wait_for(HostStandsBy).address
    for name in ("anna", "ben"):
        wait_until(
            lambda name=name: place in hosts_that(cluster, name),
            f"{place} among the hosts of {name}",
        )


def hosts_that(cluster: Cluster, name: str) -> set[str]:
    """Return the hosts that a peer knows."""
    others = read_run_file(cluster.peers / name).others
    return {f"{other.host}:{other.port}" for other in others}


def peers_of(cluster: Cluster) -> list[Process]:
    return [process for process in cluster.processes if process.name in ("anna", "ben")]


def assert_one_history(cluster: Cluster, standby: Process, *, epochs: int) -> None:
    """Check that both directories tell of the same run, that it is proved, and who has led it."""
    entries = read_journal(cluster.run)
    assert entries == read_journal(standby.home)
    history = [entry.record for entry in entries]
    assert [r.epoch for r in history if isinstance(r, Led)] == list(range(1, epochs + 1))
    rounds = [r.round for r in history if isinstance(r, Committed)]
    assert rounds == list(range(1, len(rounds) + 1))
    assert_no_sample_counts_twice(history)
    assert "nothing is wrong" in cluster.command("verify", str(standby.home))
    assert f"{len(rounds)} of " in cluster.command("status", str(standby.home))


def assert_deposed(host: Process, *, by: Process) -> None:
    assert host.wait() == 1
    address = re.escape(by.find(HostStarted)[-1].address)
    errors = [line for line in host.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, host.output
    assert re.search(f"{address} leads this run by now, in epoch 2", errors[0]), host.output
    assert "Traceback" not in host.output, host.output


def test_the_leader_is_killed_and_the_standby_takes_over(cluster, config, pair):
    host, standby = pair

    host.kill()

    started = standby.wait_for(HostStarted)
    assert started.epoch == 2
    standby.wait_for(RoundCommitted, lambda event: len(event.roster) == 2)
    assert not standby.find(PeerLeft), "the peers found it by themselves, and stay"
    assert_finished(cluster, config, [*peers_of(cluster), standby], names=["anna", "ben"])
    assert_one_history(cluster, standby, epochs=2)


def test_a_frozen_leader_thaws_deposed(cluster, config, pair):
    host, standby = pair

    host.freeze()
    standby.wait_for(RoundCommitted, lambda event: len(event.roster) == 2)
    before = len(cluster.entries())
    host.thaw()

    assert_deposed(host, by=standby)
    assert_finished(cluster, config, [*peers_of(cluster), standby], names=["anna", "ben"])
    assert len(cluster.entries()) > before
    assert_one_history(cluster, standby, epochs=2)


@pytest.mark.parametrize("rounds", [ENDLESS])
def test_the_operator_lets_the_standby_lead(cluster, config, pair):
    host, standby = pair

    address = standby.find(HostStandsBy)[0].address
    assert f"{address} is told to take over" in cluster.command("takeover", str(cluster.run))

    assert standby.wait_for(HostStarted).epoch == 2
    assert_deposed(host, by=standby)
    standby.wait_for(RoundCommitted, lambda event: len(event.roster) == 2)
    assert_all_leave(cluster, config, standby, peers_of(cluster))
    assert_one_history(cluster, standby, epochs=2)


@pytest.mark.parametrize("rounds", [ENDLESS])
def test_a_leader_that_is_stopped_hands_over_and_can_stand_by_itself(cluster, config, pair):
    host, standby = pair

    host.interrupt()
    assert host.wait() == 0
    standby.wait_for(RoundCommitted)
    again = cluster.launch_host("--standby", "--lead-s", LEAD_S)
    wait_until_known(cluster, again)
    standby.kill()

    assert again.wait_for(HostStarted).epoch == 3
    again.wait_for(RoundCommitted, lambda event: len(event.roster) == 2)
    assert_all_leave(cluster, config, again, peers_of(cluster))
    assert_one_history(cluster, standby, epochs=3)


def test_a_second_leader_is_refused_and_a_standby_goes_home_with_the_run(cluster, config, hosts):
    host, standby = hosts
    third = start_a_third(cluster)
    assert third.wait() == 1
    assert "leads this run, in epoch 1" in third.output

    for name in ("anna", "ben"):
        cluster.join(name)
    assert_finished(cluster, config, [*peers_of(cluster), host], names=["anna", "ben"])
    assert standby.wait() == 0
    assert_one_history(cluster, standby, epochs=1)


def start_a_third(cluster: Cluster) -> Process:
    """Start a host on a third machine, without saying that it should stand by."""
    there = cluster.run.with_name("third")
    options = ("--passphrase-file", str(cluster.run / "passphrase"))
    cluster.command("keys", str(there), "--import", str(cluster.run / "keys.sealed"), *options)
    return cluster.launch_host("--lead-s", LEAD_S, run=there)
