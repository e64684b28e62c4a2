"""`make soak`, cut down: real processes, random faults, one truth.

How much a fleet commits meanwhile is for the long run to say: one peer of three is a third. Regions
of two, so that there are some.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"

pytestmark = pytest.mark.timeout(600)  # several processes import torch, one after the other


def soak(page: Path, *options: str) -> str:
    command = [sys.executable, str(SOAK), "--seed", "1", "--share", "0", "--report", str(page)]
    command += ["--region-size", "2"]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return page.read_text(encoding="utf-8")


def test_a_small_fleet_stands_each_fault_and_the_loss_of_its_host(tmp_path):
    options = ("--seconds", "18", "--peers", "3", "--every-s", "4", "--host-every-s", "24")
    told = soak(tmp_path / "soak.md", *options)
    counts = r"killed (\d+), frozen (\d+), restarted (\d+); the host killed (\d+)"
    assert "0" not in re.search(counts, " ".join(told.split())).groups()


@pytest.mark.chaos
def test_a_larger_fleet_stands_them_for_longer(tmp_path):
    soak(tmp_path / "soak.md", "--seconds", "120", "--peers", "4", "--host-every-s", "80")
