"""The host is killed -9 at each kind of write to its journal, and started again in its place.

Several rounds are in flight. Open ones are not in the journal: the next host plans them again, the
first one first.
"""

import os
from pathlib import Path

import msgspec
import pytest
from tests.loopback.cluster import Cluster, Process, with_sync
from tests.loopback.proof import assert_finished

from atoll.events import HostStarted, PeerLeft, RoundPlanned, StateSynced
from atoll.host.audit import audit

pytestmark = pytest.mark.timeout(900)  # a busy machine takes a quarter of a minute for each start

IN_FLIGHT = {"mode": "overlap", "fragments": 2, "in_flight": 2}
KINDS = ("planned", "leased", "committed", "agreed")
DIES_AT_A_WRITE = """
import os, signal, sys
moment, _, kind = os.environ.get("DIES", "").partition(" ")
if kind and "host" in sys.orig_argv:
    from atoll.host.file_store import FileStore
    append = FileStore.append
    def dying(store, entries):
        is_due = any(f'"kind":"{kind}"'.encode() in entry.body for entry in entries)
        if is_due and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        appended = append(store, entries)
        if is_due:
            os.kill(os.getpid(), signal.SIGKILL)
        return appended
    FileStore.append = dying
"""


@pytest.fixture
def dying(tmp_path: Path) -> dict[str, str]:
    """The environment in which a host dies at what DIES says."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(DIES_AT_A_WRITE)
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


def restarted(cluster: Cluster, *, port: int, env: dict[str, str]) -> Process:
    host = cluster.launch_host(port=port, env=env)
    host.wait_for(HostStarted)
    return host


def test_the_host_is_killed_before_and_after_each_kind_of_write(cluster, config, dying):
    model = msgspec.structs.replace(config.model, num_layers=2)
    config = msgspec.structs.replace(config, model=model)
    # A connection that breaks is noticed at once; silence is only that of a busy machine.
    patient = {"silent_s": 60.0, "reconnect_s": 60.0}
    config = with_sync(config, rounds=18, **patient, **IN_FLIGHT)
    host, anna, ben = cluster.start(config, anna=(), ben=())
    port = host.port
    first = host.wait_for_next(RoundPlanned).round
    host.wait_for(RoundPlanned, lambda event: event.round > first)
    host.kill()
    for kind in KINDS:
        for moment in ("before", "after"):
            host = restarted(cluster, port=port, env={**dying, "DIES": f"{moment} {kind}"})
            assert host.wait() == -9, f"{moment} {kind}: {host.output}"
            assert "error" not in host.output
    host = restarted(cluster, port=port, env={})
    assert not host.find(PeerLeft)
    assert_finished(cluster, config, [anna, ben, host], names=["anna", "ben"])
    assert not anna.find(StateSynced), "its own disk had all that it needed"
    assert list(audit(cluster.run)), "as `atoll verify` proves it"
