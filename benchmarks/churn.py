"""Loss of runs whose peers come, go, miss rounds, or differ in speed: all peers in one process.

    python benchmarks/churn.py                     everything that is not in the file yet
    python benchmarks/churn.py --cases steady "30 % churn" --seeds 0 --out try.jsonl

Appends one line of JSON for each case, rule for the outer step, and seed: validation losses of the
global model, and the tokens that were committed by then. churn_report.py makes a table and a plot.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, cycle, repeat
from pathlib import Path
from random import Random
from statistics import fmean, median

import msgspec
import torch
from losses import DEMO, lines_of
from replicas import (
    CPU,
    Damping,
    Fate,
    Fleet,
    Part,
    Parts,
    Rule,
    Seen,
    as_configured,
    committed_steps,
)

from atoll.cli.places import cache_directory
from atoll.clock import monotonic_s
from atoll.config import OuterConfig, RunConfig, TokenizerConfig, check, load_run_config
from atoll.data.batches import Batches
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset
from atoll.ids import PeerId
from atoll.model.flat import load_flat_
from atoll.model.layout import layout_of
from atoll.train.baseline import initial_model
from atoll.train.evaluate import validation_loss

OUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "churn.jsonl"

PEERS, H, ROUNDS = 8, 10, 36  # of the run without churn; the others commit as many tokens
LONG_H = 40  # of the runs whose rounds are as long as warming up, instead of a quarter of it
BATCH = 4  # sequences of an inner step of one peer
INNER_LR = 4e-3
VOCABULARY = 1024  # with the shapes below a model of 0.16 M parameters
WIDTH, FFN_WIDTH, LAYERS, SEQUENCE = 64, 192, 2, 64
WARMUP_STEPS = 40
POINTS = 9  # of a curve
VALIDATION_SAMPLES = 256

SHORT = OuterConfig(lr=0.7, momentum=0.6, momentum_warmup_rounds=12)
LONG = OuterConfig(lr=0.7, momentum=0.9)

HITS: tuple[Fate, ...] = ("late", "lost")
HIT = (
    0.36  # of the peers in a round; as some are still behind, 30 % of the contributions are missing
)
FAST, SLOW = range(5), range(5, 8)  # who is slow takes five times as long for a step
BEFORE, AFTER = 20, 14  # rounds before and after many peers are lost
RECENT = 8  # rounds that a rule looks back


# --- who is there, and what becomes of their work ------------------------------------------------


def steady(_: int, num_steps: int = H) -> Iterator[Parts]:
    return repeat(dict.fromkeys(range(PEERS), Part(num_steps)))


def churning(seed: int, num_steps: int = H) -> Iterator[Parts]:
    """Half of those that are hit are late: the round closes when half of their steps are done, and
    the others follow in the next one. The other half die, and new peers come for the next round.
    """
    random, names = Random(seed), count(PEERS)
    peers, behind = list(range(PEERS)), set[int]()
    while True:
        parts = {}
        for peer in peers:
            fate: Fate = "in" if random.random() >= HIT else random.choice(HITS)
            if peer in behind:
                rest = num_steps - num_steps // 2
                parts[peer] = Part(rest, "lost" if fate == "lost" else "in")
            else:
                parts[peer] = Part(num_steps // 2 if fate == "late" else num_steps, fate)
        yield parts
        behind = {peer for peer, part in parts.items() if part.fate == "late"}
        peers = [next(names) if parts[peer].fate == "lost" else peer for peer in peers]


def by_steps(_: int, num_steps: int = H) -> Iterator[Parts]:
    """H steps each. A round lasts as long as the fast take, and half as long again for the grace
    time; but for each fourth one, in which the slow have delivered before the fast.
    """
    fast = dict.fromkeys(FAST, Part(num_steps))
    ahead = dict.fromkeys(SLOW, Part(num_steps * 3 // 10, "late"))
    last = dict.fromkeys(SLOW, Part(num_steps - 3 * (num_steps * 3 // 10)))
    return cycle([{**fast, **ahead}] * 3 + [{**fast, **last}])


def by_time(_: int, num_steps: int = H) -> Iterator[Parts]:
    slow = dict.fromkeys(SLOW, Part(num_steps // 5))
    return repeat({**dict.fromkeys(FAST, Part(num_steps)), **slow})


def with_steps(script: Iterable[Parts], num_steps: int) -> list[Parts]:
    """Return as many rounds of a script as it takes to commit so many inner steps.

    In the last one everybody is on time.
    """
    rounds: list[Parts] = []
    for parts in script:
        on_time = {peer: Part(part.num_steps) for peer, part in parts.items()}
        *_, committed = committed_steps([*rounds, on_time])
        if committed >= num_steps:
            return [*rounds, on_time]
        rounds.append(parts)
    raise AssertionError("a script has no end")


# --- rules for the outer step --------------------------------------------------------------------


def effective(share: Mapping[PeerId, float]) -> float:
    """Return how many contributors of equal share average as well as these."""
    return 1 / sum(s * s for s in share.values())


def kept_share(seen: Sequence[Seen]) -> Damping:
    """Momentum times the part of the recent rosters that is still there."""
    now, recent = seen[-1].share, seen[-RECENT - 1 : -1]
    if not recent:
        return Damping()
    return Damping(
        momentum=fmean(sum(s for p, s in each.share.items() if p in now) for each in recent)
    )


def momentum_anew(seen: Sequence[Seen]) -> Damping:
    """No momentum when many are lost, and then again more of it."""
    sizes = [effective(each.share) for each in seen]
    lost = [k for k in range(1, len(sizes)) if sizes[k] < 0.8 * sizes[k - 1]]
    return Damping(momentum=min(1.0, (len(sizes) - 1 - lost[0]) / RECENT)) if lost else Damping()


def clipped_norm(seen: Sequence[Seen]) -> Damping:
    """The mean no longer than the recent ones were."""
    recent = [each.norm for each in seen[-RECENT - 1 : -1]]
    return Damping(mean=min(1.0, median(recent) / seen[-1].norm)) if recent else Damping()


def mean_by_number(seen: Sequence[Seen]) -> Damping:
    """The mean as long as that of recent rounds would be, were all deltas orthogonal."""
    recent = fmean(effective(each.share) for each in seen[-RECENT:])
    return Damping(mean=min(1.0, effective(seen[-1].share) / recent) ** 0.5)


def lr_by_number(seen: Sequence[Seen]) -> Damping:
    """The rule of `outer.contributors`: arXiv 2503.09799."""
    most = max(len(each.share) for each in seen)
    return Damping(lr=(len(seen[-1].share) / most) ** (1 / 3))


def plain_averaging(seen: Sequence[Seen]) -> Damping:
    """lr 1 and no momentum once many are lost: what one peer alone would do without any rounds."""
    is_less = len(seen[-1].share) < 0.8 * max(len(each.share) for each in seen)
    return Damping(momentum=0.0, lr=1 / SHORT.lr) if is_less else Damping()


RULES: dict[str, Rule] = {
    "as configured": as_configured,
    "kept share": kept_share,
    "momentum anew": momentum_anew,
    "clipped norm": clipped_norm,
    "mean by number": mean_by_number,
    "lr by number": lr_by_number,
    "plain averaging": plain_averaging,
}


# --- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Peers as a script has them, for as many tokens as without churn."""

    script: Callable[[int, int], Iterator[Parts]]
    donates_moments: bool = False
    rule: str = "as configured"
    inner_steps: int = H

    def measure(self, seed: int) -> Iterator[tuple[str, dict[str, object]]]:
        script = self.script(seed, self.inner_steps)
        rounds = with_steps(script, ROUNDS * PEERS * self.inner_steps)
        config = run_config(
            rounds=len(rounds),
            inner_steps=self.inner_steps,
            outer=SHORT,
            seed=seed,
            cools_down=True,
        )
        dataset = dataset_of(config)
        fleet = Fleet(config, dataset, rule=RULES[self.rule], donates_moments=self.donates_moments)
        meter = Meter(config, dataset)
        every = max(1, len(rounds) // POINTS)
        for index, parts in enumerate(rounds, start=1):
            fleet.round(parts)
            if index % every == 0 or index == len(rounds):
                meter.read(fleet)
        yield self.rule, meter.figures(fleet)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Many peers that are lost at once; each rule goes on from the same fleet."""

    before: int
    after: int
    outer: OuterConfig

    def measure(self, seed: int) -> Iterator[tuple[str, dict[str, object]]]:
        config = run_config(
            rounds=BEFORE + AFTER, inner_steps=H, outer=self.outer, seed=seed, cools_down=False
        )
        dataset = dataset_of(config)
        trunk = Fleet(config, dataset)
        for _ in range(BEFORE):
            trunk.round(dict.fromkeys(range(self.before), Part(H)))
        branches = [(name, self.after) for name in RULES]
        for name, peers in [*branches, ("nobody lost", self.before)]:
            fleet, meter = trunk.fork(RULES.get(name, as_configured)), Meter(config, dataset)
            meter.read(fleet)
            for _ in range(AFTER):
                fleet.round(dict.fromkeys(range(peers), Part(H)))
                meter.read(fleet)
            yield name, meter.figures(fleet)


CASES: dict[str, Churn | Loss] = {
    "steady": Churn(script=steady),
    "30 % churn": Churn(script=churning),
    "30 % churn, moments of a donor": Churn(script=churning, donates_moments=True),
    "30 % churn, moments of a donor, lr by number": Churn(
        script=churning, donates_moments=True, rule="lr by number"
    ),
    "steady, H = 40": Churn(script=steady, inner_steps=LONG_H),
    "30 % churn, H = 40": Churn(script=churning, inner_steps=LONG_H),
    "30 % churn, H = 40, moments of a donor, lr by number": Churn(
        script=churning, inner_steps=LONG_H, donates_moments=True, rule="lr by number"
    ),
    "by steps": Churn(script=by_steps),
    "by time": Churn(script=by_time),
    "10 to 1": Loss(before=10, after=1, outer=SHORT),
    "10 to 1, momentum 0.9": Loss(before=10, after=1, outer=LONG),
    "12 to 8, momentum 0.9": Loss(before=12, after=8, outer=LONG),
}


class Meter:
    """Reads the validation loss of a fleet's global model."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self._layout = layout_of(config)
        self._model = initial_model(config, device=CPU)
        self._batches = Batches(dataset, seed=config.seed)
        self._tokens: list[int] = []
        self._losses: list[float] = []

    def read(self, fleet: Fleet) -> None:
        load_flat_(self._model, fleet.state.params_N, self._layout)
        loss = validation_loss(
            self._model, self._batches, batch_sequences=32, num_samples=VALIDATION_SAMPLES
        )
        self._tokens.append(fleet.num_committed * SEQUENCE)
        self._losses.append(round(loss, 4))

    def figures(self, fleet: Fleet) -> dict[str, object]:
        return {"rounds": fleet.state.round, "tokens": self._tokens, "losses": self._losses}


def run_config(
    *, rounds: int, inner_steps: int, outer: OuterConfig, seed: int, cools_down: bool
) -> RunConfig:
    """Return the demo with a smaller model."""
    demo, replace = load_run_config(DEMO), msgspec.structs.replace
    config = replace(
        demo,
        model=replace(
            demo.model,
            vocab_size=VOCABULARY,
            width=WIDTH,
            ffn_width=FFN_WIDTH,
            num_layers=LAYERS,
        ),
        data=replace(
            demo.data, tokenizer=TokenizerConfig(vocab_size=VOCABULARY), sequence_length=SEQUENCE
        ),
        inner=replace(
            demo.inner,
            lr=INNER_LR,
            batch_sequences=BATCH,
            warmup_steps=WARMUP_STEPS,
            cooldown_steps=rounds * inner_steps // 5 if cools_down else 0,
        ),
        sync=replace(
            demo.sync, rounds=rounds, inner_steps=inner_steps, codec="int8", update_codec="int8"
        ),
        outer=outer,
        seed=seed,
    )
    check(config)
    return config


def dataset_of(config: RunConfig) -> Dataset:
    return prepare(
        config, base_directory=DEMO.parent, directory=cache_directory(), on_progress=lambda *_: None
    )


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    done = [json.loads(line) for line in lines_of(arguments.out)]
    for seed in arguments.seeds:
        for case in arguments.cases:
            asked = {"case": case, "seed": seed}
            if any(asked.items() <= line.items() for line in done):
                continue
            started_at = monotonic_s()
            for rule, figures in CASES[case].measure(seed):
                line = {**asked, "rule": rule, **figures}
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(case, seed, rule, figures["losses"], flush=True)
            print(f"{monotonic_s() - started_at:.0f} s", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
