"""The same seed is the same run, event for event, in any process."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.sim.cast import play, trace_of

from atoll.sim.setting import PeerSpec, RunSpec, Setting

PEERS = (
    PeerSpec(name="anna", link="home-fibre"),
    PeerSpec(name="ben", link="home-dsl", step_s=1.3),
    PeerSpec(name="carl", link="lte", step_s=0.8, joins_at_s=9.0),
)


def setting_of(mode: str, seed: int = 1) -> Setting:
    return Setting(seed=seed, peers=PEERS, run=RunSpec(mode=mode, vocab_size=2048, rounds=4))


@pytest.mark.parametrize("mode", ["blocking", "overlap"])
def test_two_runs_of_one_seed_report_the_same(mode, tmp_path):
    setting = setting_of(mode)
    first, second = (play(setting, tmp_path / name) for name in ("one", "two"))
    assert len(first.trace) > 100
    assert trace_of(first) == trace_of(second)
    assert first.journal == second.journal
    other = play(setting_of(mode, seed=2), tmp_path / "three")
    assert trace_of(other) != trace_of(first)


def test_another_process_with_other_hashes_reports_the_same(tmp_path):
    """The order of sets of strings differs from one Python process to the next."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.sim.cast import play, trace_of\n"
        "from tests.sim.test_same_seed import setting_of\n"
        "sys.stdout.buffer.write(trace_of(play(setting_of('overlap'), Path(sys.argv[1]))))\n"
    )
    root = Path(__file__).parents[2]

    def traced(hash_seed: int) -> bytes:
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / str(hash_seed))],
            env={"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": f"{root}:{root / 'src'}"},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout

    first = traced(1)
    assert first.count(b"\n") > 100
    assert first == traced(2)
