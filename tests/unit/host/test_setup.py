import pytest
from msgspec.structs import replace
from tests.unit.host.scene import CONFIG

from atoll.config import canonical, run_digest
from atoll.errors import ConfigError, DamagedError, RunError
from atoll.host.setup import open_run
from atoll.host.stores import JOURNAL_FILE
from atoll.ids import digest_of
from atoll.net.identity import signed_key, verify
from atoll.net.records import Planned

DATASET = digest_of(b"dataset")


def opened(path, *, config=CONFIG, dataset=DATASET):
    return open_run(path, config, dataset=dataset)


def test_a_new_run_begins_with_a_signed_genesis(tmp_path):
    run = opened(tmp_path)
    (entry,) = run.journal.entries
    genesis = entry.record
    assert (genesis.run, genesis.dataset) == (run_digest(CONFIG), DATASET)
    assert genesis.config.encode() == canonical(CONFIG)
    assert genesis.authority == run.authority.digest
    assert (genesis.built_in, genesis.built_in_key) == (
        run.built_in.peer_id,
        run.built_in.public_key.hex(),
    )
    assert verify(bytes.fromhex(genesis.public_key), bytes.fromhex(entry.hash), entry.signature)
    for identity in (run.identity, run.built_in):
        assert identity.peer_id != run.authority.digest
        key = signed_key(identity.certificate, authority=run.authority.certificate)
        assert key == identity.public_key
    run.close()


def test_an_old_run_goes_on_with_the_same_keys(tmp_path):
    run = opened(tmp_path)
    run.journal.append([Planned(round=1, peers=())])
    before = (run.identity.peer_id, run.built_in.peer_id, run.authority.digest)
    run.close()
    again = opened(tmp_path)
    assert (again.identity.peer_id, again.built_in.peer_id, again.authority.digest) == before
    assert len(again.journal.entries) == 2
    again.close()


def test_a_begun_run_keeps_its_config_and_its_text(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(ConfigError, match=r"run\.toml has changed"):
        opened(tmp_path, config=replace(CONFIG, seed=1))
    with pytest.raises(ConfigError, match="the text that the run was begun with"):
        opened(tmp_path, dataset=digest_of(b"other"))
    opened(tmp_path).close()  # whoever was refused let go of the directory


def test_two_hosts_cannot_serve_one_directory(tmp_path):
    run = opened(tmp_path)
    with pytest.raises(RunError, match="another host process"):
        opened(tmp_path)
    run.close()
    opened(tmp_path).close()


def test_a_damaged_journal_or_key_is_said_and_the_directory_let_go(tmp_path):
    opened(tmp_path).close()
    journal = (tmp_path / JOURNAL_FILE).read_bytes()
    (tmp_path / JOURNAL_FILE).write_bytes(b"?" * len(journal))
    with pytest.raises(DamagedError):
        opened(tmp_path)
    (tmp_path / JOURNAL_FILE).write_bytes(journal)
    opened(tmp_path).close()
    (tmp_path / "authority.pem").write_bytes(b"?")
    with pytest.raises(DamagedError):
        opened(tmp_path)


def test_a_start_that_was_cut_off_among_the_keys_begins_anew(tmp_path):
    (tmp_path / "built-in").write_bytes(b"in the way")
    with pytest.raises(RunError):
        opened(tmp_path)
    (tmp_path / "built-in").unlink()
    opened(tmp_path).close()


def test_a_journal_that_is_not_there_is_missed_and_the_keys_stay(tmp_path):
    opened(tmp_path).close()
    keys = {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}
    (tmp_path / JOURNAL_FILE).rename(tmp_path / "elsewhere")
    (tmp_path / "built-in" / "commits").mkdir()
    (tmp_path / "built-in" / "commits" / "000003").touch()
    with pytest.raises(DamagedError, match="is not there, but round 3 had been committed"):
        opened(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / JOURNAL_FILE)
    opened(tmp_path).close()
    assert keys == {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}


def test_a_start_that_was_cut_off_before_the_journal_begins_anew(tmp_path):
    opened(tmp_path).close()
    for file in tmp_path.glob(f"{JOURNAL_FILE}*"):
        file.unlink()
    run = opened(tmp_path)
    assert len(run.journal.entries) == 1
    run.close()
