"""Which outer settings fit a run of a given length: DiLoCo in one process, with the real parts.

    python benchmarks/outer_settings.py --rounds 16 --inner-steps 10 1.0/0 1.0/0.3/4 alone parallel

A setting is LR/MOMENTUM or LR/MOMENTUM/WARMUP_ROUNDS of the outer step. `alone` is one peer that
takes as many inner steps by itself, `parallel` one process with the batches of all peers together.
The model and the text are those of configs/demo.toml. Prints one line of JSON for each setting.

Shapes: N values of the model.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from atoll.cli.places import cache_directory
from atoll.clock import monotonic_s
from atoll.config import OuterConfig, RunConfig, check, load_run_config
from atoll.data.batches import Batches
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import encode_slice
from atoll.exchange.plan import shares
from atoll.exchange.reduce import reduce_slice
from atoll.exchange.step import apply_updates_
from atoll.ids import PeerId
from atoll.model.flat import load_flat_, store_flat_
from atoll.model.llama import Llama
from atoll.outer.layout import slice_bounds
from atoll.outer.state import PeerState
from atoll.train.baseline import initial_model, train_alone, with_batch_factor
from atoll.train.evaluate import validation_loss
from atoll.train.inner import InnerLoop
from atoll.train.work import cut_into_steps

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
            device=torch.device("cpu"),
            num_steps=config.total_steps,
            on_step=lambda *_: None,
        )
        return trained.model, []
    lr, momentum, *warmup = map(float, setting.split("/"))
    outer = OuterConfig(
        lr=lr, momentum=momentum, momentum_warmup_rounds=int(warmup[0]) if warmup else 0
    )
    return diloco(msgspec.structs.replace(config, outer=outer), dataset, num_peers=num_peers)


def diloco(config: RunConfig, dataset: Dataset, *, num_peers: int) -> tuple[Llama, list[float]]:
    """Return the model after all rounds, and the norm of each round's mean pseudo-gradient."""
    model = initial_model(config, device=torch.device("cpu"))
    state = PeerState.initial(flat(model))
    batches = Batches(dataset, seed=config.seed)
    loops = [
        InnerLoop(initial_model(config, device=torch.device("cpu")), batches, config)
        for _ in range(num_peers)
    ]
    norms = []
    for _ in range(config.sync.rounds):
        locals_N = [
            train_round(loop, state, place=place, num_peers=num_peers)
            for place, loop in enumerate(loops)
        ]
        updates = exchange(state, locals_N, config)
        codec = CODECS[config.sync.update_codec]
        slices = slice_bounds(state.num_values)
        squares = [
            codec.check(update, stop - start)
            for (start, stop), update in zip(slices, updates, strict=True)
        ]
        norms.append(sum(squares) ** 0.5)
        apply_updates_(state, updates, codec=codec, outer=config.outer)
    load_flat_(model, state.params_N)
    return model, norms


def train_round(
    loop: InnerLoop, state: PeerState, *, place: int, num_peers: int
) -> NDArray[np.float32]:
    """Return the parameters of one peer after the inner steps of the next round."""
    config = loop.config
    load_flat_(loop.model, state.params_N)
    first = (state.round * num_peers + place) * config.samples_per_round
    spans = [(first, first + config.samples_per_round)]
    steps = cut_into_steps(spans, batch_sequences=config.inner.batch_sequences)
    for step, step_spans in enumerate(steps, start=state.round * config.sync.inner_steps):
        loop.step(step_spans, step=step)
    return flat(loop.model)


def exchange(
    state: PeerState, locals_N: Sequence[NDArray[np.float32]], config: RunConfig
) -> list[bytes]:
    """Return the updates of a round in which everybody contributes."""
    codec, update_codec = CODECS[config.sync.codec], CODECS[config.sync.update_codec]
    peers = [PeerId(f"{place:032x}") for place in range(len(locals_N))]
    encoded = {
        peer: [
            encode_slice(codec, global_N=state.params_N[start:stop], local_N=local_N[start:stop])
            for start, stop in slice_bounds(state.num_values)
        ]
        for peer, local_N in zip(peers, locals_N, strict=True)
    }
    sizes = [stop - start for start, stop in slice_bounds(state.num_values)]
    norms = {
        peer: sum(codec.check(p, size) for p, size in zip(payloads, sizes, strict=True)) ** 0.5
        for peer, payloads in encoded.items()
    }
    tokens = dict.fromkeys(peers, config.samples_per_round * config.data.sequence_length)
    share = shares(tokens, norms, clip_to_median=config.sync.clip_to_median)
    return [
        reduce_slice(
            [(encoded[peer][index], share[peer]) for peer in share],
            codec=codec,
            update_codec=update_codec,
            num_values=size,
        )
        for index, size in enumerate(sizes)
    ]


def flat(model: Llama) -> NDArray[np.float32]:
    out_N = np.empty(sum(parameter.numel() for parameter in model.parameters()), np.float32)
    store_flat_(model, out_N)
    return out_N


if __name__ == "__main__":
    main()
