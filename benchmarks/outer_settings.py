"""Which outer settings fit a run of a given length: DiLoCo in one process, with the real parts.

    python benchmarks/outer_settings.py --rounds 16 --inner-steps 10 1.0/0 1.0/0.3/4 alone parallel

A setting is LR/MOMENTUM or LR/MOMENTUM/WARMUP_ROUNDS of the outer step. `alone` is one peer that
takes as many inner steps by itself, `parallel` one process with the batches of all peers together.
The model and the text are those of configs/demo.toml. Prints one line of JSON for each setting.
"""

import argparse
import json
from pathlib import Path

import msgspec
import torch
from replicas import diloco

from atoll.cli.places import cache_directory
from atoll.clock import monotonic_s
from atoll.config import OuterConfig, RunConfig, check, load_run_config
from atoll.data.batches import Batches
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset
from atoll.model.flat import load_flat_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.train.baseline import initial_model, train_alone, with_batch_factor
from atoll.train.evaluate import validation_loss

DEMO = Path(__file__).parents[1] / "configs" / "demo.toml"
VALIDATION_SAMPLES = 512


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    config = run_config(arguments)
    dataset = prepare(
        config,
        base_directory=DEMO.parent,
        directory=arguments.cache or cache_directory(),
        on_progress=lambda *_: None,
    )
    for setting in arguments.settings:
        started_at = monotonic_s()
        model, norms = train(setting, config, dataset, num_peers=arguments.peers)
        loss = validation_loss(
            model,
            Batches(dataset, seed=config.seed),
            batch_sequences=8,
            num_samples=min(VALIDATION_SAMPLES, dataset.num_validation_samples),
        )
        line = {
            "setting": setting,
            "validation_loss": round(loss, 3),
            "peers": arguments.peers,
            "rounds": config.sync.rounds,
            "inner_steps": config.sync.inner_steps,
            "optimizer": config.inner.optimizer,
            "inner_lr": config.inner.lr,
            "batch": config.inner.batch_sequences,
            "warmup": config.inner.warmup_steps,
            "cooldown": config.inner.cooldown_steps,
            "seed": config.seed,
            "norms": [round(norm, 2) for norm in norms[:: max(1, len(norms) // 8)]],
            "seconds": round(monotonic_s() - started_at, 1),
        }
        print(json.dumps(line), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="+", help="LR/MOMENTUM[/WARMUP_ROUNDS], alone, parallel")
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--inner-lr", type=float, default=2e-3)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--batch", type=int, default=8, help="sequences of an inner step")
    parser.add_argument("--warmup", type=float, default=0.125, help="share of the inner steps")
    parser.add_argument("--cooldown", type=float, default=0.2, help="share of the inner steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="where the tokenised text is kept")
    return parser.parse_args()


def run_config(arguments: argparse.Namespace) -> RunConfig:
    demo = load_run_config(DEMO)
    num_steps = arguments.rounds * arguments.inner_steps
    inner = msgspec.structs.replace(
        demo.inner,
        optimizer=arguments.optimizer,
        lr=arguments.inner_lr,
        batch_sequences=arguments.batch,
        warmup_steps=round(arguments.warmup * num_steps),
        cooldown_steps=round(arguments.cooldown * num_steps),
    )
    sync = msgspec.structs.replace(
        demo.sync, rounds=arguments.rounds, inner_steps=arguments.inner_steps
    )
    config = msgspec.structs.replace(demo, inner=inner, sync=sync, seed=arguments.seed)
    check(config)
    return config


def train(
    setting: str, config: RunConfig, dataset: Dataset, *, num_peers: int
) -> tuple[Llama, list[float]]:
    """Return the model that a setting gives, and the norm of the mean of each of its rounds."""
    if setting in ("alone", "parallel"):
        trained = train_alone(
            with_batch_factor(config, num_peers if setting == "parallel" else 1),
            dataset,
            model=initial_model(config, device=torch.device("cpu")),
            num_steps=config.total_steps,
            on_step=lambda *_: None,
        )
        return trained.model, []
    lr, momentum, *warmup = map(float, setting.split("/"))
    outer = OuterConfig(
        lr=lr, momentum=momentum, momentum_warmup_rounds=int(warmup[0]) if warmup else 0
    )
    return diloco_model(msgspec.structs.replace(config, outer=outer), dataset, num_peers=num_peers)


def diloco_model(
    config: RunConfig, dataset: Dataset, *, num_peers: int
) -> tuple[Llama, list[float]]:
    """Return the model after all rounds, and the norm of each round's mean pseudo-gradient."""
    rounds = list(diloco(config, dataset, num_peers=num_peers))
    model = initial_model(config, device=torch.device("cpu"))
    load_flat_(model, rounds[-1].state.params_N, layout_of(config))
    return model, [each.norm for each in rounds]


if __name__ == "__main__":
    main()
