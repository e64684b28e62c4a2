"""The same seed is the same run, event for event, in any process."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.sim.cast import well

from atoll.sim.faults import AtTime, Crash, Flicker
from atoll.sim.play import Case, events_of
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting

PEERS = (
    PeerSpec(name="anna", link="home-fibre"),
    PeerSpec(name="ben", link="home-dsl", step_s=1.3),
    PeerSpec(name="carl", link="lte", step_s=0.8, joins_at_s=9.0),
)


SCRIPT = (
    Crash(when=AtTime(8.0), who="ben", back_s=2.0),
    Crash(when=AtTime(14.0), who=HOST, back_s=1.0),
    Flicker(when=AtTime(20.0), who="anna"),
)


def case_of(mode: str, seed: int = 1, *, region_size: int = 64) -> Case:
    run = RunSpec(mode=mode, vocab_size=2048, rounds=4, region_size=region_size)
    return Case(setting=Setting(seed=seed, peers=PEERS, run=run), script=SCRIPT)


def played(case: Case, directory: Path) -> bytes:
    """Return all that was reported, and the journal."""
    directory.mkdir()
    outcome = well(case, directory)
    return events_of(outcome) + repr(outcome.records).encode()


@pytest.mark.parametrize("mode", ["blocking", "overlap"])
def test_two_runs_of_one_seed_are_one(mode, tmp_path):
    first, second = (played(case_of(mode), tmp_path / name) for name in ("one", "two"))
    assert first.count(b"\n") > 100
    assert first == second
    assert played(case_of(mode, seed=2), tmp_path / "three") != first


def test_another_process_with_other_hashes_does_the_same(tmp_path):
    """The order of sets of strings differs from one Python process to the next."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.sim.test_same_seed import case_of, played\n"
        "sys.stdout.buffer.write(played(case_of('overlap', region_size=1), Path(sys.argv[1])))\n"
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
