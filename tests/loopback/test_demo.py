"""The demo as a user sees it, on a small text: real processes, and what it prints about them."""

import re
import shutil
import socket
from pathlib import Path

import pytest
from msgspec.structs import replace

from atoll.cli.demo import BUILT_IN, LOOPBACK, NAMES, Stage, free_port, perform
from atoll.cli.outcome import compare
from atoll.config import RunConfig
from atoll.errors import RunError
from atoll.outer.saved import saved_rounds


def stage_in(directory: Path, *, cache: Path, peers: int, chaos: bool = False) -> Stage:
    return Stage(
        directory=directory, cache=cache, names=NAMES[:peers], port=free_port(), chaos=chaos
    )


def of_rounds(config: RunConfig, rounds: int, *, inner_steps: int) -> RunConfig:
    sync = replace(config.sync, rounds=rounds, inner_steps=inner_steps, min_peers=1)
    return replace(config, sync=sync)


def states_in(output: str) -> dict[str, str]:
    """Return the state that the demo printed for each member, and for the journal."""
    return dict(re.findall(r"(?m)^(\S+) +([0-9a-f]{24})\b", output))


def test_a_demo_ends_with_one_state_everywhere_and_a_better_model(config, shared, tmp_path, capsys):
    stage = stage_in(tmp_path / "demo", cache=shared / "datasets", peers=2)
    short = of_rounds(config, 2, inner_steps=8)
    perform(short, stage)
    output = capsys.readouterr().out
    states = states_in(output)
    assert list(states) == ["ada", "ben", BUILT_IN, "journal"]
    assert len(set(states.values())) == 1
    before, after = (
        float(re.search(rf"(?m)^{when} +(\d\.\d+)", output)[1]) for when in ("before", "after")
    )
    assert after < before - 0.2
    assert "round 2 of 2 committed" in output
    assert f" verify {stage.directory}\n" in output
    assert {saved_rounds(home / "states")[-1] for home in stage.homes.values()} == {2}
    assert_another_state_is_told(stage, short)


def assert_another_state_is_told(stage: Stage, config: RunConfig) -> None:
    """Check what is said of a demo that went well but for one member's state."""
    newest = stage.homes["ada"] / "states" / "000002"
    shutil.rmtree(newest)
    problems = compare(stage.directory, stage.homes, config).problems
    assert problems == ["ada has another state: that of round 1"]
    shutil.copytree(stage.homes[BUILT_IN] / "states" / "000002", newest)
    assert compare(stage.directory, stage.homes, config).problems == []
    with (newest / "state.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    (problem,) = compare(stage.directory, stage.homes, config).problems
    assert "damaged" in problem


@pytest.mark.timeout(300)
def test_the_run_goes_on_when_a_trainer_and_a_peer_are_killed(config, shared, tmp_path, capsys):
    stage = stage_in(tmp_path / "demo", cache=shared / "datasets", peers=2, chaos=True)
    perform(of_rounds(config, 16, inner_steps=60), stage)
    output = capsys.readouterr().out
    told = ["killed ada's trainer", "ada has a trainer again", "killed ben", "ben is gone"]
    told += ["started ben again", "ben is back", "round 16 of 16 committed"]
    assert [output.find(words) for words in told] == sorted(output.find(words) for words in told)
    assert all(words in output for words in told)
    assert len(set(states_in(output).values())) == 1


def test_a_host_that_does_not_come_up_is_told_with_its_log(config, shared, tmp_path, capsys):
    stage = stage_in(tmp_path / "demo", cache=shared / "datasets", peers=1)
    with (
        socket.create_server((LOOPBACK, stage.port)),  # a port that is taken
        pytest.raises(RunError) as caught,
    ):
        perform(of_rounds(config, 1, inner_steps=1), stage)
    output = capsys.readouterr().out
    assert re.search(rf"the host failed with exit code 1: error: .*{stage.port}", output)
    assert str(stage.directory / "output.log") in output
    assert str(stage.directory) in caught.value.hint
    assert "equal" not in output
