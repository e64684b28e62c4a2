"""The load on a host is measured with real connections, on which rounds are committed."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "host_load.py"
MEMBERS, ROUNDS = 20, 2


def test_a_crowd_of_members_trains_with_a_real_host():
    given = (str(MEMBERS), "--rounds", str(ROUNDS), "--train-s", "0.2")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["members"], told["rounds"]) == (MEMBERS, ROUNDS)
    messages = told["messages_per_member_and_round"]
    for kind in ("Plan", "Contribution", "Closed", "Commit", "AtState"):
        assert messages[kind] >= 1 - 1 / MEMBERS, f"{kind}: {messages}"
    assert told["host_cores"] > 0
    assert 0 < told["announcement_p50_ms"] <= told["announcement_p99_ms"]
