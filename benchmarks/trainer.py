"""How fast the trainer is on this machine, beside others that do the same: tokens per second.

    python benchmarks/trainer.py --model small --sequence-length 512 --batch 4 --steps 8 --json

    atoll           the trainer's inner step: samples, loss, backward, clip, AdamW
    compiled        the same with `compile = true`; only if asked for
    bare            a loop without a framework over our model and our loss, on tensors made before
    transformers    a plain loop over LlamaForCausalLM with the same shapes, and its own loss
    hf_trainer      the Trainer of transformers, over the same model

`--beside` says which of these stand beside ours. All have random tokens of one document each, the
same threads, a fused AdamW, weights in fp32, and matrix products in `--dtype`: bf16 is by autocast
everywhere. They take their steps in turns, so that a machine that is busy is busy for all, and each
of them as often behind each other one; a ratio is the median of those of each turn, above 1 where
we are faster. `of_peak` is what our step reaches of the operations that plain matrix products of
the model's shapes and dtype do per second, in the same turns: the physical limit.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Final

import torch
from gpu import as_small_as_in_a_run_, inner_loop, run_config
from torch import Tensor

from atoll.clock import monotonic_s
from atoll.config import RunConfig
from atoll.model.accounting import flops_per_token
from atoll.model.hf_config import describe
from atoll.model.llama import Llama
from atoll.model.presets import PRESETS
from atoll.system import keep_freed_memory
from atoll.train.compiled import Compiler
from atoll.train.device import Precision, computes_in_bf16
from atoll.train.inner import autocast
from atoll.train.loss import language_model_loss

CPU = torch.device("cpu")
HF_TRAINER: Final = "hf_trainer"
Step = Callable[[], float]
"""Takes a step and returns its loss, as every loop reads it."""


def main() -> None:
    arguments = parse()
    keep_freed_memory()  # for all of them: what atoll's trainers do, and plain loops do not
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = run_config(
        PRESETS[arguments.model],
        sequence_length=arguments.sequence_length,
        batch=arguments.batch,
    )
    bf16 = arguments.dtype == "bf16"
    if arguments.dtype == "auto":
        bf16 = computes_in_bf16(CPU, width=config.model.width)
    make: dict[str, Callable[[], Step]] = {
        "atoll": lambda: atoll(config, bf16=bf16),
        "compiled": lambda: atoll(config, "inductor", bf16=bf16),
        "bare": lambda: bare(config, bf16=bf16),
        "transformers": lambda: transformers(config, bf16=bf16),
        "products": lambda: products(config, bf16=bf16),
    }
    names = ["atoll", *arguments.beside, "products"]
    steps = {name: make[name]() for name in names if name != HF_TRAINER}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    turns = in_turns(steps, seconds, num_turns=arguments.steps + 1)
    if HF_TRAINER in names:
        with_hf_trainer(config, turns, bf16=bf16, num_steps=arguments.steps + 1)
    else:
        next(turns, None)
    first_s = {name: each.pop(0) for name, each in seconds.items()}
    result = summary(config, seconds) | {
        "model": arguments.model,
        "dtype": "bf16" if bf16 else "fp32",
        "threads": torch.get_num_threads(),
        "first_step_s": {name: round(first_s[name], 1) for name in first_s if name != "products"},
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<24} {value}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=list(PRESETS), default="small")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4, help="samples of an inner step")
    parser.add_argument("--steps", type=int, default=8, help="turns that count; one more warms up")
    parser.add_argument(
        "--dtype", choices=["auto", "fp32", "bf16"], default="auto", help="auto: as peers choose"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=["compiled", "bare", "transformers", HF_TRAINER],
        default=["bare", "transformers", HF_TRAINER],
        help="what ours is compared with",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    return parser.parse_args()


def atoll(config: RunConfig, compiler: Compiler = "none", *, bf16: bool) -> Step:
    precision: Precision = "bf16" if bf16 else "fp32"
    loop = inner_loop(config, CPU, micro_batch=0, compiler=compiler, precision=precision)
    size = config.inner.batch_sequences

    def step() -> float:
        number = loop.steps_since_fresh
        stop = (number + 1) * size
        return loop.step([(stop - size, stop)], step=number, then=[(stop, stop + size)]).loss

    return step


def bare(config: RunConfig, *, bf16: bool) -> Step:
    model = Llama(config.model)
    as_small_as_in_a_run_(model)
    tokens_BT, targets_BT = random_tokens(config)

    def loss() -> Tensor:
        with autocast(CPU, bf16=bf16):
            objective, _ = language_model_loss(
                model.hidden(tokens_BT),
                model.head_weight,
                targets_BT,
                num_targets=targets_BT.numel(),
                z_loss=0.0,
            )
        return objective

    return plain_loop(model, config, loss)


def transformers(config: RunConfig, *, bf16: bool) -> Step:
    model = their_model(config)
    tokens_BT, _ = random_tokens(config)

    def loss() -> Tensor:
        with autocast(CPU, bf16=bf16):
            objective: Tensor = model(input_ids=tokens_BT, labels=tokens_BT).loss
        return objective

    return plain_loop(model, config, loss)


def their_model(config: RunConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaConfig(
        **describe(config.model),
        max_position_embeddings=config.data.sequence_length,
        use_cache=False,
    )
    return LlamaForCausalLM(theirs).float()


def with_hf_trainer(
    config: RunConfig, turns: Iterator[None], *, bf16: bool, num_steps: int
) -> None:
    """Let a Trainer train; before each of its steps, and at the end, the others take their turns.

    Its loop cannot be handed out in steps, and in a thread it slows down all others: OpenMP's
    threads do not wait awake for work while there are more of them than cores.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class InTurns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            next(turns)

        def on_log(self, *_: Any, **given: Any) -> None:
            if "loss" in given["logs"]:  # else it is the summary at the end
                next(turns, None)

    batch, inner = config.inner.batch_sequences, config.inner
    tokens_BT = torch.cat([random_tokens(config)[0] for _ in range(num_steps)])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=their_model(config),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch,
                max_steps=num_steps,
                learning_rate=inner.lr,
                lr_scheduler_type="constant",
                weight_decay=inner.weight_decay,
                adam_beta1=inner.beta1,
                adam_beta2=inner.beta2,
                adam_epsilon=inner.eps,
                max_grad_norm=inner.clip_norm,
                optim="adamw_torch_fused",
                bf16=bf16,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=[{"input_ids": row_T, "labels": row_T} for row_T in tokens_BT],
            callbacks=[InTurns()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def plain_loop(model: torch.nn.Module, config: RunConfig, loss: Callable[[], Tensor]) -> Step:
    inner = config.inner
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=inner.lr,
        betas=(inner.beta1, inner.beta2),
        eps=inner.eps,
        weight_decay=inner.weight_decay,
        fused=True,
    )

    def step() -> float:
        optimizer.zero_grad()
        objective = loss()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), inner.clip_norm)
        optimizer.step()
        return objective.item()

    return step


def products(config: RunConfig, *, bf16: bool) -> Step:
    """Return the matrix products of a forward and a backward pass, with nothing between them."""
    num_tokens = config.inner.batch_sequences * config.data.sequence_length
    dtype = torch.bfloat16 if bf16 else torch.float32
    weights = [p.detach().to(dtype) for p in Llama(config.model).parameters() if p.ndim == 2]
    if not config.model.tied_embeddings:
        weights = weights[1:]  # the embedding is a lookup
    inputs = {size: torch.randn(num_tokens, size, dtype=dtype) for w in weights for size in w.shape}

    def step() -> float:
        for weight in weights:
            rows, columns = weight.shape
            inputs[columns] @ weight.T
            inputs[rows] @ weight
            inputs[rows].T @ inputs[columns]
        return 0.0

    return step


def random_tokens(config: RunConfig) -> tuple[Tensor, Tensor]:
    size = (config.inner.batch_sequences, config.data.sequence_length + 1)
    tokens_BS = torch.randint(0, config.model.vocab_size, size)
    return tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous()


def in_turns(
    steps: dict[str, Step], seconds: dict[str, list[float]], *, num_turns: int
) -> Iterator[None]:
    """Let each take its steps, and note the seconds; yield for those of the Trainer."""
    names = list(seconds)
    for turn in range(num_turns):
        for place in order(len(names), turn=turn):
            name = names[place]
            began_at = monotonic_s()
            if name == HF_TRAINER:
                yield
            else:
                steps[name]()
            seconds[name].append(monotonic_s() - began_at)


def order(number: int, *, turn: int) -> list[int]:
    """Return who comes when in a turn; in 2 `number` turns each is as often behind each other.

    What goes before, and leaves caches and clocks as they are, is worth some hundredths. By E. J.
    Williams, "Experimental designs balanced for the estimation of residual effects", 1949.
    """
    zigzag = [-(place // 2) if place % 2 == 0 else (place + 1) // 2 for place in range(number)]
    places = [(place + turn // 2) % number for place in zigzag]
    return places[:: -1 if turn % 2 else 1]


def summary(config: RunConfig, seconds: dict[str, list[float]]) -> dict[str, Any]:
    num_tokens = config.inner.batch_sequences * config.data.sequence_length
    flops = num_tokens * flops_per_token(config.model, sequence_length=config.data.sequence_length)
    of_products = (
        6 * num_tokens * sum(p.numel() for p in Llama(config.model).parameters() if p.ndim == 2)
    )
    if not config.model.tied_embeddings:
        of_products -= 6 * num_tokens * config.model.vocab_size * config.model.width

    def ratio(ours: str, other: str) -> float:
        turns = zip(seconds[other], seconds[ours], strict=True)
        return round(median(theirs / ours for theirs, ours in turns), 3)

    turns = zip(seconds["products"], seconds["atoll"], strict=True)
    return {
        "sequence_length": config.data.sequence_length,
        "batch": config.inner.batch_sequences,
        "turns": len(seconds["atoll"]),
        **{
            f"tokens_per_s_{name}": round(num_tokens / median(seconds[name]))
            for name in seconds
            if name != "products"
        },
        **{
            key: ratio(*pair)
            for key, pair in {
                "ratio_transformers": ("atoll", "transformers"),
                "ratio_hf_trainer": ("atoll", HF_TRAINER),
                "ratio_bare_loop": ("atoll", "bare"),
                "ratio_compiled": ("compiled", "atoll"),
            }.items()
            if seconds.keys() >= set(pair)
        },
        "gflops_per_s_atoll": round(flops / median(seconds["atoll"]) / 1e9, 1),
        "gflops_per_s_products": round(of_products / median(seconds["products"]) / 1e9, 1),
        "of_peak": round(median(limit / ours for limit, ours in turns) * flops / of_products, 3),
    }


if __name__ == "__main__":
    main()
