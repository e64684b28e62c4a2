"""Stop and resume = never stopped, bit for bit."""

import shutil
from pathlib import Path

import pytest
from tests.loopback.cluster import SLOW, Cluster, Process, wait_until, with_sync
from tests.loopback.proof import assert_finished, digest_on_disk

from atoll.config import RunConfig
from atoll.events import StateSynced
from atoll.ids import Digest
from atoll.net import records

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other

NAMES = ["anna", "ben"]
STOP_AFTER = 2


@pytest.fixture
def short(config):
    return with_sync(config, rounds=4, grace_floor_s=5.0)


@pytest.fixture
def enrolled(tmp_path, shared, short) -> Path:
    """A folder with a run that two peers have joined, before anybody trained."""
    folder = tmp_path / "enrolled"
    folder.mkdir()
    cluster = Cluster(folder, cache=shared / "datasets")
    try:
        cluster.write_run(short)
        host = cluster.start_host()
        for name in NAMES:
            peer = cluster.join(name)
            wait_until((peer.home / "run.json").exists, "enrolment", watch=peer)
            peer.kill()
        host.kill()
        assert not cluster.records(records.Leased)
    finally:
        cluster.close()
    return folder


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(enrolled, tmp_path, shared, short):
    straight = finish(copy_of(enrolled, tmp_path / "straight", shared), short)

    cut = copy_of(enrolled, tmp_path / "cut", shared)
    try:
        host, *peers = start(cut, *SLOW)
        for home in (cut.peers / name for name in NAMES):
            for kept in (f"states/{STOP_AFTER:06}", f"inner/{STOP_AFTER:06}.safetensors"):
                wait_until((home / kept).exists, kept)
        wait_until(lambda: cut.committed() >= STOP_AFTER, "the second round")
        for process in (host, *peers):
            process.kill()
        assert cut.committed() == STOP_AFTER, "not the moment that was meant"
        newest = cut.records(records.Agreed)[-1].state
        assert [digest_on_disk(cut, name, short) for name in NAMES] == [newest, newest]
    finally:
        cut.close()

    assert finish(cut, short) == straight


def copy_of(folder: Path, target: Path, shared: Path) -> Cluster:
    shutil.copytree(folder, target)
    return Cluster(target, cache=shared / "datasets")


def start(cluster: Cluster, *options: str) -> list[Process]:
    return [cluster.start_host(), *(cluster.join(name, *options) for name in NAMES)]


def finish(cluster: Cluster, config: RunConfig) -> Digest:
    """Start everything, and return the digest of the final state."""
    try:
        processes = start(cluster)
        assert_finished(cluster, config, processes, names=NAMES)
        synced = [one for process in processes for one in process.find(StateSynced)]
        assert not synced, "their own disks had all that they needed"
        return cluster.records(records.Agreed)[-1].state
    finally:
        cluster.close()
