import resource

import pytest
from tests.unit.host.scene import CONFIG

from atoll.config import run_digest
from atoll.errors import DamagedError, ProtocolError, RunError
from atoll.ids import RoundId, digest_of
from atoll.net import wire
from atoll.net.identity import Identity
from atoll.net.records import Planned
from atoll.peer.home import Home, read_run_file


def opened(enrolled):
    return Home(enrolled.directory, keep_states=2)


def test_a_home_knows_its_run_and_its_host(home, enrolled):
    assert home.config == CONFIG
    assert home.run == run_digest(CONFIG)
    assert home.host_key == enrolled.authority.public_key
    assert home.identity.peer_id == enrolled.peer
    assert home.run_file.port == 7


def test_one_process_at_a_time(home, enrolled):
    with pytest.raises(RunError, match="another process uses") as caught:
        opened(enrolled)
    assert "--dir" in caught.value.hint
    home.close()
    opened(enrolled).close()


def test_a_directory_that_was_never_enrolled(tmp_path):
    Identity.create().save(tmp_path)
    with pytest.raises(RunError, match="belongs to no run"):
        read_run_file(tmp_path)
    with pytest.raises(RunError):
        Home(tmp_path / "new", keep_states=2)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b'{"config": 1}'])
def test_a_damaged_run_file_is_said(enrolled, content):
    path = enrolled.directory / "run.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"run\.json is damaged"):
        opened(enrolled)


def test_commits_are_remembered(home, enrolled):
    for round_id in (1, 2):
        home.keep_commit(enrolled.commit(round_id, b"update %d" % round_id))
    home.close()
    again = opened(enrolled)
    commits = again.commits()
    assert list(commits) == [1, 2]
    assert commits[RoundId(2)].updates[0].digest == digest_of(b"update 2")
    again.close()


def test_a_commit_that_the_host_did_not_sign_is_not_kept(home, enrolled):
    with pytest.raises(ProtocolError):
        home.keep_commit(wire.decode(wire.encode(enrolled.announced(Planned(round=1, peers=())))))
    assert home.commits() == {}


@pytest.mark.parametrize("damage", ["flip", "cut", "another message", "garbage"])
def test_a_damaged_commit_is_said(home, enrolled, damage):
    home.keep_commit(enrolled.commit(1, b"update"))
    path = enrolled.directory / "commits" / "000001"
    content = path.read_bytes()
    changed = {
        "flip": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "cut": content[:-1],
        "another message": wire.encode(wire.Heartbeat()),
        "garbage": b"?",
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(DamagedError, match="000001 is damaged"):
        home.commits()


def test_a_half_written_commit_is_cleared_away(home, enrolled):
    home.keep_commit(enrolled.commit(1, b"update"))
    (enrolled.directory / "commits" / "000002.new").write_bytes(b"half")
    assert list(home.commits()) == [1]
    assert [p.name for p in (enrolled.directory / "commits").iterdir()] == ["000001"]


def test_a_full_disk_is_said_and_what_was_kept_stays(home, enrolled):
    home.keep_commit(enrolled.commit(1, b"update"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with pytest.raises(RunError):
            home.keep_commit(enrolled.commit(2, b"other"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(home.commits()) == [1]


def test_forgetting_drops_only_the_updates_that_no_kept_or_open_round_names(home, enrolled):
    blobs = {name: name.encode() for name in ("one", "shared", "two", "three", "open")}
    for payload in blobs.values():
        home.blobs.put(digest_of(payload), payload)
    home.keep_commit(enrolled.commit(1, blobs["one"], blobs["shared"]))
    home.keep_commit(enrolled.commit(2, blobs["two"], blobs["shared"]))
    home.keep_commit(enrolled.commit(3, blobs["three"]))
    kept = home.commits()

    def there():
        return {name for name, payload in blobs.items() if home.blobs.has(digest_of(payload))}

    home.blobs.turn()
    home.blobs.turn()
    home.blobs.put(digest_of(blobs["open"]), blobs["open"])
    home.forget_before(RoundId(2), kept)
    assert there() == {"shared", "two", "three", "open"}
    assert list(kept) == list(home.commits()) == [2, 3]
    home.forget_before(RoundId(2), kept)
    home.forget_before(RoundId(4), kept)
    assert there() == {"open"}
    assert kept == home.commits() == {}


def test_old_inner_optimizers_are_dropped(home):
    for round_id in (9, 10, 11):
        home.inner_path(RoundId(round_id)).write_bytes(b"x")
    arriving = home.inner_path(RoundId(9)).with_name("arriving")
    arriving.write_bytes(b"of another peer")
    home.forget_inner_before(RoundId(10))
    assert not arriving.exists()
    assert [home.inner_path(RoundId(r)).exists() for r in (9, 10, 11)] == [False, True, True]
