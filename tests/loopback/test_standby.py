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

pytestmark = pytest.mark.timeout(900)  # a busy machine takes a quarter of a minute for each start

# Long enough for a leader to renew in time, and for a peer to be heard, on a machine that has much
# else to do: only who was stopped on purpose is to be taken for gone.
LEAD_S = "10.0"
SILENT_S = 10.0
ENDLESS = 1000
PASSPHRASE = "reef tide island lagoon"


@pytest.fixture
def rounds() -> int:
    return 20


@pytest.fixture
def region_size() -> int:
    return 64


@pytest.fixture
def config(config, rounds, region_size):
    patient = {"silent_s": SILENT_S, "reconnect_s": 60.0}
    return with_sync(config, rounds=rounds, region_size=region_size, **patient)


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


def assert_leads(host: Process, *, epoch: int) -> None:
    """Check that this host comes to lead, and that both peers are in a round that it commits."""
    assert host.wait_for(HostStarted).epoch == epoch
    host.wait_for(RoundCommitted, lambda event: len(event.roster) == 2)


def assert_deposed(host: Process, *, by: Process) -> None:
    assert host.wait() == 1
    started = by.find(HostStarted)[-1]
    address = re.escape(started.address)
    errors = [line for line in host.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, host.output
    assert re.search(f"{address} leads this run by now, in epoch {started.epoch}", errors[0])
    assert "Traceback" not in host.output, host.output


@pytest.mark.parametrize(("rounds", "region_size"), [(ENDLESS, 1)])
def test_the_lead_passes_on_when_the_leader_freezes_is_told_to_stops_or_is_killed(
    cluster, config, pair
):
    """In rounds of two regions, which the new leader opens again."""
    first, second = pair

    first.freeze()
    assert_leads(second, epoch=2)
    before = len(cluster.entries())
    first.thaw()
    assert_deposed(first, by=second)
    second.wait_for_next(RoundCommitted)
    assert len(cluster.entries()) > before

    first = stand_by_again(cluster, first)
    address = first.find(HostStandsBy)[0].address
    assert f"{address} is told to take over" in cluster.command("takeover", str(cluster.run))
    assert_leads(first, epoch=3)
    assert_deposed(second, by=first)

    second = stand_by_again(cluster, second)
    first.interrupt()
    assert first.wait() == 0
    assert_leads(second, epoch=4)

    first = stand_by_again(cluster, first)
    second.kill()
    assert_leads(first, epoch=5)
    left = {event.name for event in first.find(PeerLeft)} - {"built-in"}
    assert not left, "the peers found it by themselves, and stay"
    assert_all_leave(cluster, config, first, peers_of(cluster))
    assert_one_history(cluster, second, epochs=5)
    commits = [entry.record for entry in cluster.entries() if isinstance(entry.record, Committed)]
    of_both = [commit for commit in commits if len(commit.roster) == 2]
    assert len(of_both) >= 5
    assert {tuple(entry.region for entry in commit.roster) for commit in of_both} <= {
        (0, 1),
        (1, 0),
    }


def stand_by_again(cluster: Cluster, host: Process) -> Process:
    """Start a host that has ended as a standby; return it once both peers know of it."""
    standby = start_standby(cluster, host.home)
    wait_until_known(cluster, standby)
    return standby


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
