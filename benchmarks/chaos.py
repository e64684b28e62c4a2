"""Random faults by the thousand: `make chaos SEEDS=10000`, or `benchmarks/chaos.py --seed 17`.

Each seed is a case of its own: machines, lines, a script of faults (`atoll.sim.scripts`). A case
that ends badly is cut down to what it takes, printed as Python and as JSON, and kept in a file.
Exit code 1: there was one.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from atoll.sim.play import Case, play
from atoll.sim.scripts import random_case

SHOWN = 5  # sentences of each verdict
EVERY = 50  # seeds between two lines of progress
BATCH = 20  # seeds that a process takes at a time


@dataclass(frozen=True)
class Verdict:
    case: Case
    wrong: list[str]
    virtual_s: float
    cpu_s: float
    num_faults: int
    num_rounds: int


def judged(case: Case) -> tuple[list[str], float, int, int]:
    """Return what is wrong, the virtual seconds, the faults and the rounds that there were."""
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="atoll-chaos-") as directory:
        try:
            outcome, wrong = play(case, Path(directory))
        except Exception as error:  # noqa: BLE001 - the other seeds go on
            return [f"the simulation itself failed: {error!r}"], 0.0, 0, 0
        seconds = outcome.trace[-1][0] if outcome.trace else 0.0
        return wrong, seconds, len(outcome.happened), len(outcome.commits)


def case_of(seed: int, given: argparse.Namespace) -> Case:
    """Return the case of this seed; with so many rounds, if that is said."""
    case = random_case(seed, in_flight=given.in_flight, standby=given.standby)
    if given.rounds is None:
        return case
    run = replace(case.setting.run, rounds=given.rounds)
    return replace(case, setting=replace(case.setting, run=run))


def judge_cases(cases: list[Case]) -> list[Verdict]:
    verdicts = []
    for case in cases:
        began_at = time.process_time()
        wrong, virtual_s, num_faults, num_rounds = judged(case)
        cpu_s = time.process_time() - began_at
        verdicts.append(Verdict(case, wrong, virtual_s, cpu_s, num_faults, num_rounds))
    return verdicts


def cut_down(case: Case) -> Case:
    """Return the case without the faults that it does not take to end as badly."""
    wrong, *_ = judged(case)
    index = 0
    while index < len(case.script):
        smaller = replace(case, script=case.script[:index] + case.script[index + 1 :])
        still, *_ = judged(smaller)
        if still and still[0].split()[:2] == wrong[0].split()[:2]:
            case = smaller
        else:
            index += 1
    return case


def show(verdict: Verdict) -> None:
    print(f"\nseed {verdict.case.setting.seed} ended badly:")
    for sentence in verdict.wrong[:SHOWN]:
        print(f"  {sentence}")
    smallest = cut_down(verdict.case)
    print(f"play it again with:\n{smallest}\n{smallest.to_json()}\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--case", help="play this JSON instead")
    parser.add_argument("--in-flight", type=int, default=1, help="rounds that may be open at once")
    parser.add_argument("--standby", action="store_true", help="a second host in every case")
    parser.add_argument("--rounds", type=int, help="of each run, in place of 3 to 6")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if given.case or given.seed is not None:
        case = (
            msgspec.json.decode(given.case, type=Case) if given.case else case_of(given.seed, given)
        )
        wrong, *_ = judged(case)
        print(case, *(wrong or ["it ended well"]), sep="\n")
        return int(bool(wrong))
    seeds = range(given.first, given.first + given.seeds)
    cases = [case_of(seed, given) for seed in seeds]
    batches = [cases[at : at + BATCH] for at in range(0, len(cases), BATCH)]
    began_at, verdicts = time.monotonic(), []
    with ProcessPoolExecutor(given.processes) as pool:
        for done in as_completed([pool.submit(judge_cases, batch) for batch in batches]):
            for verdict in done.result():
                verdicts.append(verdict)
                if verdict.wrong:
                    show(verdict)
                if len(verdicts) % EVERY == 0:
                    print(f"{len(verdicts)} seeds, {time.monotonic() - began_at:.0f} s", flush=True)
    return summary(verdicts, seconds=time.monotonic() - began_at)


def summary(verdicts: list[Verdict], *, seconds: float) -> int:
    """Print what it was altogether, and return the exit code."""
    bad = sorted(verdict.case.setting.seed for verdict in verdicts if verdict.wrong)
    print(
        f"{len(verdicts)} seeds in {seconds:.0f} s, {sum(v.cpu_s for v in verdicts):.0f} s of CPU: "
        f"{sum(v.num_faults for v in verdicts)} faults, {sum(v.num_rounds for v in verdicts)} "
        f"rounds, {sum(v.virtual_s for v in verdicts) / 3600:.1f} virtual hours"
    )
    print(f"ended badly: {len(bad)}", *bad)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
