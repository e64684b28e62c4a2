"""How a peer begins its life in a terminal."""

import asyncio

import pytest
from tests.unit.host.scene import CONFIG
from tests.unit.peer.cast import Enrolled

from atoll.cli.life import take_part
from atoll.config import PeerConfig
from atoll.errors import RunError
from atoll.peer.home import Home


async def never(*_, **__):
    raise AssertionError("no trainer is started")


def test_a_second_process_for_a_directory_ends_before_it_shows_anything(tmp_path, capsys):
    Enrolled(tmp_path, CONFIG)
    first = Home(tmp_path, keep_states=2)
    try:
        with pytest.raises(RunError, match="another process uses"):
            asyncio.run(take_part("", PeerConfig(directory=str(tmp_path)), start_trainer=never))
    finally:
        first.close()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_directory_that_belongs_to_no_run_is_said_so_and_not_made(tmp_path):
    directory = tmp_path / "nobody's"
    with pytest.raises(RunError, match="belongs to no run"):
        asyncio.run(take_part("", PeerConfig(directory=str(directory)), start_trainer=never))
    assert not directory.exists()
