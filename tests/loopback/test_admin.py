"""The operator's commands on a real run: invite, pause, resume, remove, stop; and the owner's.

Meanwhile two others talk with its model, and get each newer one.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.loopback.cluster import wait_until, with_sync
from tests.loopback.talking import Talking

from atoll.cli.operator import TOKEN_FILE
from atoll.events import DashboardServed, PeerRests, RunPaused
from atoll.net.records import Paused, Planned, Removed, Resumed


@pytest.fixture
def on_exit() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_an_operator_has_the_last_word(cluster, config, on_exit):
    cluster.write_run(with_sync(config, rounds=1000, min_peers=1))
    host = cluster.start_host()
    assert host.wait_for(DashboardServed).url.startswith("http://127.0.0.1:")
    mode = stat.S_IMODE((cluster.run / TOKEN_FILE).stat().st_mode)
    assert mode == stat.S_IRUSR | stat.S_IWUSR

    said = cluster.command("admin", str(cluster.run), "invite", "--uses", "1")
    peer = cluster.join_by(said.split("atoll join ")[1].strip(), "anna", "--nice", "3")
    wait_until(lambda: cluster.committed() >= 1, "a commit", watch=peer)
    talking = Talking(cluster)
    on_exit.callback(talking.close)

    assert "no new round" in cluster.command("admin", str(cluster.run), "pause")
    host.wait_for(RunPaused)
    cluster.command("admin", str(cluster.run), "resume")
    records = [entry.record for entry in cluster.entries()]
    (paused,) = [n for n, record in enumerate(records) if isinstance(record, Paused)]
    (resumed,) = [n for n, record in enumerate(records) if isinstance(record, Resumed)]
    assert not any(isinstance(record, Planned) for record in records[paused:resumed])
    committed = cluster.committed()
    wait_until(lambda: cluster.committed() > committed + 1, "another round", watch=peer)

    mine, trainers = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, *peer.trainers))
    assert trainers == min(19, mine + 3)
    assert "rests" in cluster.command("pause", "--dir", str(peer.home))
    assert host.wait_for(PeerRests).rests
    assert "goes on" in cluster.command("resume", "--dir", str(peer.home))
    host.wait_for(PeerRests, lambda event: not event.rests)
    committed = cluster.committed()
    wait_until(lambda: cluster.committed() > committed, "another round", watch=peer)
    talking.follow(cluster)
    talking.end()

    cluster.command("admin", str(cluster.run), "remove", "anna", "--reason", "for a test")
    assert peer.wait() != 0
    assert "removed" in peer.output
    assert [record.reason for record in cluster.records(Removed)] == ["for a test"]
    again = cluster.join_again("anna")
    assert again.wait() != 0
    assert "removed this machine" in again.output

    assert "the host stops" in cluster.command("admin", str(cluster.run), "stop")
    assert host.wait() == 0
    assert "stopped by the operator" in host.output
