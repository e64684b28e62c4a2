"""`make soak`, cut down to four peers and a minute: real processes, random faults, one truth."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_small_fleet_stands_random_faults(tmp_path):
    """How much it commits meanwhile is for the long run to say: one of four is a quarter."""
    page = tmp_path / "soak.md"
    options = ["--seconds", "60", "--peers", "4", "--seed", "1", "--share", "0"]
    ran = subprocess.run(
        [sys.executable, str(SOAK), *options, "--report", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "frozen" in page.read_text(encoding="utf-8")
