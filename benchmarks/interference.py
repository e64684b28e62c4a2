"""How much the agent slows the inner loop of its trainer, where there is a core to spare. Linux.

    python benchmarks/interference.py [--runs 3]

One peer trains overlapped; its trainer has core 0 and one thread, and core 1 has all else: its
agent, the host, and the built-in member, which reduces. So every byte goes over TLS, both ways, and
is encoded, checked, averaged, hashed and put on disk, as fast as core 1 can.

Inner steps that lie within such work are set against those of the same round that do not: pairs, so
whatever else changes from minute to minute is in both. One line of JSON for each run: `slowdown` is
the median over the rounds of mean step during / mean step without, less 1, `quartiles` the middle
half of the rounds; `control` the same for halves of the steps without, which should be 0.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import NamedTuple, TypeVar

from atoll.cli.recipes import outer_config
from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
    template,
)
from atoll.events import PhaseTimed, TrainerStarted, Training, read_events

TRAINER_CORE, OTHER_CORE = 0, 1
ROUNDS, INNER_STEPS = 14, 24
WARM_ROUNDS = 2
SEQUENCE = 32  # tokens of an inner step: a short one, so that many fall into an exchange
HEARTBEAT_S = 0.02  # in which the host hears of the newest step
NOWHERE = "127.0.0.3"  # so the peer reduces nothing itself
RUN_S = 220.0
POLL_S = 0.05
WORK = ("encode", "send", "update", "outer_step", "hash", "checkpoint")
MODEL = ModelConfig(
    vocab_size=4096, num_layers=6, width=384, num_heads=6, num_kv_heads=6, ffn_width=1024
)

E = TypeVar("E")


class Step(NamedTuple):
    round: int
    start: float
    stop: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("interference.py: it takes two cores: one to train on, and one to spare")
    for _ in range(parser.parse_args().runs):
        with TemporaryDirectory(prefix="atoll-interference-") as name:
            print(json.dumps(measure(Path(name))), flush=True)


def config() -> RunConfig:
    return RunConfig(
        name="interference",
        model=MODEL,
        data=DataConfig(
            sources=(SourceConfig(kind="preset", name="sotu"),),
            tokenizer=TokenizerConfig(vocab_size=MODEL.vocab_size),
            sequence_length=SEQUENCE,
        ),
        inner=InnerConfig(lr=1e-3, batch_sequences=1),
        outer=outer_config(ROUNDS, inner_steps=INNER_STEPS, peers_expected=0),
        sync=SyncConfig(
            rounds=ROUNDS, inner_steps=INNER_STEPS, mode="overlap", heartbeat_s=HEARTBEAT_S
        ),
    )


def measure(folder: Path) -> dict[str, object]:
    """Return the figures of one run."""
    run, home = folder / "run", folder / "peer"
    run.mkdir()
    home.mkdir()
    (run / "run.toml").write_text(template(config()), encoding="utf-8")
    with ExitStack() as stack:
        place = ("--listen", "127.0.0.1", "--advertise", "127.0.0.1", "--no-web")
        host = stack.enter_context(started(run, "host", str(run), *place))
        wait_until(lambda: (run / "invite.txt").exists(), run)
        invite = (run / "invite.txt").read_text(encoding="utf-8").strip()
        options = ("--dir", str(home), "--threads", "1", "--advertise", NOWHERE)
        peer = stack.enter_context(started(home, "join", invite, *options))
        wait_until(lambda: events_of(home, TrainerStarted), home)
        pin(events_of(home, TrainerStarted)[0][1].pid, core=TRAINER_CORE)
        wait_until(lambda: peer.poll() is not None and host.poll() is not None, home)
    return figures(steps(run), exchanges(home))


@contextmanager
def started(home: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command of atoll on the spare core, and end it at the end."""
    command = ["taskset", "-c", str(OTHER_CORE), sys.executable, "-P", "-m", "atoll.cli.main"]
    with (
        (home / "output.log").open("wb") as log,
        subprocess.Popen([*command, *arguments], stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def pin(pid: int, *, core: int) -> None:
    """Put all threads of a process on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def wait_until(look: Callable[[], object], home: Path) -> None:
    give_up_at = monotonic() + RUN_S
    while not look():
        if monotonic() > give_up_at:
            sys.exit(f"interference.py: too late: {(home / 'output.log').read_text()[-800:]}")
        sleep(POLL_S)


# --- what came of it -----------------------------------------------------------------------------


def events_of(home: Path, kind: type[E]) -> list[tuple[float, E]]:
    stamped = read_events(home / "events.jsonl")[0]
    return [(each.at, each.event) for each in stamped if isinstance(each.event, kind)]


def steps(run: Path) -> list[Step]:
    """Return the inner steps that the host heard of, each once."""
    found: dict[int, Step] = {}
    for at, event in events_of(run, Training):
        seconds = SEQUENCE / event.tokens_per_s
        found.setdefault(event.step, Step(event.round, at - seconds, at))
    return list(found.values())


def exchanges(home: Path) -> list[tuple[float, float]]:
    """Return when the agent was at work, as (start, stop)."""
    timed = events_of(home, PhaseTimed)
    return [(at - event.seconds, at) for at, event in timed if event.phase in WORK]


def figures(steps: Sequence[Step], work: Sequence[tuple[float, float]]) -> dict[str, object]:
    during, without = defaultdict(list), defaultdict(list)
    for step in steps:
        seconds = step.stop - step.start
        busy_s = sum(max(0.0, min(step.stop, b) - max(step.start, a)) for a, b in work)
        if step.round > WARM_ROUNDS and busy_s >= 0.9 * seconds:
            during[step.round].append(seconds)
        elif step.round > WARM_ROUNDS and busy_s == 0:
            without[step.round].append(seconds)
    pairs = [r for r in during if len(during[r]) >= 2 and len(without[r]) >= 4]
    slower = [mean(during[r]) / mean(without[r]) - 1 for r in pairs]
    control = [mean(without[r][::2]) / mean(without[r][1::2]) - 1 for r in pairs]
    low, _, high = quantiles(slower, n=4)
    return {
        "slowdown": round(median(slower), 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "control": round(median(control), 4),
        "rounds": len(pairs),
        "steps_during": sum(len(during[r]) for r in pairs),
        "steps_without": sum(len(without[r]) for r in pairs),
        "step_ms": round(1e3 * mean(s for r in pairs for s in without[r]), 1),
    }


if __name__ == "__main__":
    main()
