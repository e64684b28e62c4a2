"""What is said of a machine, finding by finding; then of this one, with real steps."""

import json

import pytest
import torch
import typer

from atoll.cli import examination as look
from atoll.cli.doctor import doctor
from atoll.cli.examination import Fit, of_clock, of_presets, of_reach, of_run
from atoll.cli.places import cache_directory
from atoll.config import PeerConfig
from atoll.model.peaks import own_peak_flops
from atoll.units import GIB

CPU = torch.device("cpu")


def fits_in(room_bytes: int) -> list[Fit]:
    runs = look.presets().items()
    return [look.fit_of(name, config, CPU, room_bytes=room_bytes) for name, config in runs]


def test_more_memory_fits_larger_models_and_what_is_next_is_said():
    none, some, all_of_them = (of_presets(fits_in(gib * GIB)) for gib in (0, 8, 10_000))
    assert none.level == "bad"
    assert "free some memory" in none.advice
    assert (some.level, some.found.split(",")[0]) == ("good", "runs of tiny (1.3 M)")
    assert "would take" in some.advice
    assert (all_of_them.found.count("("), all_of_them.advice) == (len(look.presets()), "")
    largest = [max(f.parameters for f in fits_in(gib * GIB) if f.micro_batch) for gib in (1, 8, 99)]
    assert largest == sorted(set(largest))


def test_the_run_of_this_peer_fits_or_what_helps_is_said():
    small, large = fits_in(8 * GIB)[0], fits_in(8 * GIB)[-1]
    assert of_run(small).level == "good"
    assert (of_run(large).level, "recompute" in of_run(large).advice) == ("bad", True)


@pytest.mark.parametrize(
    ("ahead_s", "level", "found"),
    [
        (2.0, "good", "2.0 s from the host's"),
        (124.0, "note", "2 min 4 s behind the host's"),
        (-3600.0, "note", "1 h 0 min ahead of the host's"),
    ],
)
def test_clocks(ahead_s, level, found):
    assert (of_clock(ahead_s).level, of_clock(ahead_s).found) == (level, found)


def test_whether_others_can_dial_this_machine():
    assert look.is_own_address("127.0.0.1")
    assert not look.is_own_address("198.51.100.7")  # of documentation: nobody has it (RFC 5737)
    assert "firewall" in of_reach("192.0.2.1", is_own=True).advice
    assert "nothing need be done" in of_reach("192.0.2.1", is_own=False).advice


def test_a_full_disk_keeps_from_training(tmp_path):
    peer = PeerConfig(directory=str(tmp_path / "not" / "there"))
    assert look.of_disk(peer, 1).level == "good"
    full = look.of_disk(peer, 10**18)
    assert (full.level, "--dir" in full.advice) == ("bad", True)


def test_this_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(look, "SPEED_S", 0.0)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(typer.Exit) as ended:
        doctor(device="cpu", json=True)
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert ended.value.exit_code == 0
    assert {"versions", "device", "memory", "can join", "disk", "speed"} <= set(findings)
    assert "tokens/s" in findings["speed"]["found"]
    assert own_peak_flops(cache_directory()) > 0, "atoll plan goes by it"


def test_a_device_that_is_not_there_ends_with_one(capsys):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(typer.Exit) as ended:
        doctor(device="cuda")
    assert ended.value.exit_code == 1
    said = capsys.readouterr().out
    assert "BAD  device" in said
    assert "this machine cannot train yet" in said
