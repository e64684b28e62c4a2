"""Loss at equal tokens for each codec and mode: all peers in one process, with the real parts.

    python benchmarks/losses.py                         everything that is not in the file yet
    python benchmarks/losses.py --seeds 0 --settings fp32 int8 --rounds 4 --out try.jsonl

Appends one line of JSON for each setting and seed: the validation loss after so many inner steps,
and `bits`, which a peer's contributions and their updates take per parameter and inner step.
losses_report.py makes table and plot of it. Every setting sees the same number of samples, but for
`alone`, where a peer has no others and sees its part.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from replicas import CPU, diloco

from atoll.cli.places import cache_directory
from atoll.clock import monotonic_s
from atoll.config import OuterConfig, RunConfig, TokenizerConfig, check, load_run_config
from atoll.data.batches import Batches
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset
from atoll.model.flat import load_flat_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.train.baseline import initial_model, with_batch_factor
from atoll.train.evaluate import validation_loss
from atoll.train.inner import InnerLoop

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.toml"
OUT = ROOT / "docs" / "benchmarks" / "losses.jsonl"

PEERS = 4
BATCH = 4  # sequences of an inner step of one peer
INNER_LR = 4e-3
VOCABULARY = 1024  # with the shapes below a model of 0.54 M parameters
WIDTH, FFN_WIDTH = 96, 288
POINTS = 10  # of a curve
VALIDATION_SAMPLES = 256

NESTEROV = OuterConfig(lr=0.7, momentum=0.6, momentum_warmup_rounds=12)
AVERAGING = OuterConfig(lr=1.0, momentum=0.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    codec: str
    update_codec: str
    outer: OuterConfig = NESTEROV
    mode: str = "blocking"
    fragments: int = 1


BASELINES = {"adamw": PEERS, "alone": 1}  # with the batches of so many peers in each step
SETTINGS = {
    "fp32": Setting(codec="fp32", update_codec="fp32"),
    # fp32 but for the last bits of the first round: how far apart chance alone takes two runs.
    "fp64": Setting(codec="fp64", update_codec="fp64"),
    "int8": Setting(codec="int8", update_codec="int8"),
    "int4, int8 updates": Setting(codec="int4", update_codec="int8"),
    "int4": Setting(codec="int4", update_codec="int4"),
    "sparse": Setting(codec="sparse", update_codec="sparse8", outer=AVERAGING),
    "overlap": Setting(codec="int8", update_codec="int8", mode="overlap"),
    "streaming": Setting(codec="int8", update_codec="int8", mode="overlap", fragments=4),
}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    done = [json.loads(line) for line in lines_of(arguments.out)]
    for seed in arguments.seeds:
        for name in arguments.settings:
            asked = {
                "setting": name,
                "seed": seed,
                "peers": PEERS,
                "rounds": arguments.rounds,
                "inner_steps": arguments.inner_steps,
                "arrival": arguments.arrival,
            }
            if any(asked.items() <= line.items() for line in done):
                continue
            config = run_config(
                name, rounds=arguments.rounds, inner_steps=arguments.inner_steps, seed=seed
            )
            measured = measure(name, config, arrival=arguments.arrival)
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**asked, **measured}) + "\n")
            print(name, seed, measured["losses"], f"{measured['seconds']} s", flush=True)


def parse() -> argparse.Namespace:
    names = [*BASELINES, *SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=40, help="of the whole model")
    parser.add_argument("--inner-steps", type=int, default=12)
    parser.add_argument(
        "--arrival",
        type=float,
        default=0.5,
        help="share of the next round's inner steps that is done when an overlapped update comes",
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def run_config(name: str, *, rounds: int, inner_steps: int, seed: int) -> RunConfig:
    """Return the run of a setting: the demo with a smaller model."""
    demo, replace = load_run_config(DEMO), msgspec.structs.replace
    setting = SETTINGS.get(name, SETTINGS["fp32"])
    num_steps = rounds * inner_steps
    config = replace(
        demo,
        model=replace(demo.model, vocab_size=VOCABULARY, width=WIDTH, ffn_width=FFN_WIDTH),
        data=replace(demo.data, tokenizer=TokenizerConfig(vocab_size=VOCABULARY)),
        inner=replace(
            demo.inner,
            lr=INNER_LR,
            batch_sequences=BATCH,
            warmup_steps=num_steps // 8,
            cooldown_steps=num_steps // 5,
        ),
        sync=replace(
            demo.sync,
            rounds=rounds * setting.fragments,
            inner_steps=inner_steps,
            mode=setting.mode,
            fragments=setting.fragments,
            codec=setting.codec,
            update_codec=setting.update_codec,
        ),
        outer=setting.outer,
        seed=seed,
    )
    config = with_batch_factor(config, BASELINES.get(name, 1))
    check(config)
    return config


def measure(name: str, config: RunConfig, *, arrival: float) -> dict[str, object]:
    """Return the figures of one run."""
    started_at = monotonic_s()
    dataset = prepare(
        config, base_directory=DEMO.parent, directory=cache_directory(), on_progress=lambda *_: None
    )
    batches = Batches(dataset, seed=config.seed)
    every = max(1, config.total_steps // POINTS)
    steps, losses, num_bytes = [], [], 0
    training = (
        plain(config, batches)
        if name in BASELINES
        else exchanging(config, dataset, arrival=arrival)
    )
    for num_steps, model, round_bytes in training:
        num_bytes += round_bytes
        if num_steps % every == 0:
            loss = validation_loss(
                model, batches, batch_sequences=8, num_samples=VALIDATION_SAMPLES
            )
            steps.append(num_steps)
            losses.append(round(loss, 4))
    num_values = layout_of(config).num_values
    return {
        "params": num_values,
        "samples_per_step": config.inner.batch_sequences * (1 if name in BASELINES else PEERS),
        "sequence_length": config.data.sequence_length,
        "bits": round(8 * num_bytes / (num_values * config.total_steps), 4),
        "steps": steps,
        "losses": losses,
        "seconds": round(monotonic_s() - started_at, 1),
    }


def plain(config: RunConfig, batches: Batches) -> Iterator[tuple[int, Llama, int]]:
    """Train without an exchange; yield the steps that are done, the model, and no bytes."""
    loop = InnerLoop(initial_model(config, device=CPU), batches, config)
    size = config.inner.batch_sequences
    for step in range(config.total_steps):
        loop.step([(step * size, (step + 1) * size)], step=step)
        yield step + 1, loop.model, 0


def exchanging(
    config: RunConfig, dataset: Dataset, *, arrival: float
) -> Iterator[tuple[int, Llama, int]]:
    """Train with all peers; yield for each round the steps in it, the global model, its bytes."""
    model = initial_model(config, device=CPU)
    for each in diloco(config, dataset, num_peers=PEERS, arrival=arrival):
        load_flat_(model, each.state.params_N, layout_of(config))
        yield each.id * config.steps_per_round, model, each.num_bytes


if __name__ == "__main__":
    main()
