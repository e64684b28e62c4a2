"""The keys of a run on their way to a standby: whole with the passphrase, nothing without."""

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from atoll.errors import ConfigError, RunError
from atoll.host.keys import FILES, seal, unseal

PASSPHRASE = "reef tide island lagoon"
CONTENTS = {name: f"the content of {name}".encode() for name in FILES}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory, and more in it than a standby needs."""
    directory = tmp_path_factory.mktemp("run")
    for name, content in {**CONTENTS, "events.jsonl": b"{}"}.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def sealed(run):
    return seal(run, PASSPHRASE)


def test_what_was_sealed_is_there_again_for_this_user_alone(sealed, tmp_path):
    unseal(sealed, PASSPHRASE, tmp_path / "there")
    files = {p for p in (tmp_path / "there").rglob("*") if p.is_file()}
    assert {str(p.relative_to(tmp_path / "there")): p.read_bytes() for p in files} == CONTENTS
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_nothing_of_it_can_be_read_in_between(run, sealed):
    assert not any(content in sealed for content in CONTENTS.values())
    assert seal(run, PASSPHRASE) != sealed, "never twice the same"


def test_another_passphrase_opens_nothing(sealed, tmp_path):
    with pytest.raises(ConfigError, match="the passphrase is not the one"):
        unseal(sealed, PASSPHRASE + ".", tmp_path)
    assert list(tmp_path.iterdir()) == []


@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_opens_nothing(sealed, tmp_path, data):
    damaged = bytearray(sealed)
    damaged[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    cut = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    for content in (bytes(damaged), cut):
        with pytest.raises(ConfigError, match="or the file is damaged"):
            unseal(content, PASSPHRASE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_keys_of_its_own_is_left_alone(sealed, run, tmp_path):
    (tmp_path / "authority.pem").touch()
    with pytest.raises(ConfigError, match="has keys already"):
        unseal(sealed, PASSPHRASE, tmp_path)


def test_a_short_passphrase_and_a_run_without_keys_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="11 characters"):
        seal(run, "x" * 11)
    with pytest.raises(RunError, match=r"has no keys yet: run\.toml is missing"):
        seal(tmp_path, PASSPHRASE)


def test_unsealing_that_was_cut_off_can_be_done_again(sealed, tmp_path):
    (tmp_path / "host").write_bytes(b"in the way")
    with pytest.raises(RunError):
        unseal(sealed, PASSPHRASE, tmp_path)
    (tmp_path / "host").unlink()
    unseal(sealed, PASSPHRASE, tmp_path)
    assert (tmp_path / "authority.pem").exists()
