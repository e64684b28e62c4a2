"""What `atoll demo` refuses before it starts anything."""

from pathlib import Path

import pytest

from atoll.cli.demo import demo
from atoll.errors import ConfigError


@pytest.mark.parametrize(("peers", "rounds"), [(1, 16), (3, 5)])
def test_chaos_needs_somebody_to_go_on_and_time_to_come_back(peers: int, rounds: int):
    with pytest.raises(ConfigError, match="--chaos needs 2 peers and 6 rounds"):
        demo(peers=peers, rounds=rounds, chaos=True)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError) as caught:
        demo(keep=tmp_path)
    assert f"atoll host {tmp_path}" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="there is something already"):
        demo(keep=tmp_path / "file")
