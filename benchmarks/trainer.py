"""How fast the trainer is on this machine, beside others that do the same: tokens per second.

    python benchmarks/trainer.py --model small --sequence-length 512 --batch 4 --steps 8 --json

    atoll           the trainer's inner step: samples, loss, backward, clip, AdamW
    compiled        the same with `compile = true`; only if asked for
    bare            a loop without a framework over our model and our loss, on tensors made before
    transformers    a plain loop over LlamaForCausalLM with the same shapes, and its own loss
    hf_trainer      the Trainer of transformers, over the same model
    products        the matrix products of the model's shapes and dtype, with nothing between them

Each is a process of its own, as its users have it: ours is prepared as a peer's trainer is, a loop
over transformers is a script that imports it and no more. What is held against ours for the sake of
one difference, bare and products, is prepared as ours. All have random tokens of one document each,
the same threads, a fused AdamW, weights in fp32, and matrix products in `--dtype`: bf16 is by
autocast everywhere.

One of them computes at a time: between two steps each waits until it is told to go on. They take
turns, so that a machine that is busy is busy for all, and each is as often behind each other one; a
ratio is the median of those of each turn, above 1 where we are faster. All processes are started
anew a few times, since where a process has its memory is worth some hundredths while it lives.
`of_peak` is what our step reaches of the operations that products do per second, in the same turns:
the physical limit.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from gpu import as_small_as_in_a_run_, inner_loop, run_config
from torch import Tensor

from atoll.clock import monotonic_s
from atoll.config import RunConfig
from atoll.model.accounting import flops_per_token
from atoll.model.hf_config import describe
from atoll.model.llama import Llama
from atoll.model.presets import PRESETS
from atoll.train.compiled import Compiler
from atoll.train.device import computes_in_bf16, prepare_process, set_threads
from atoll.train.inner import autocast
from atoll.train.loss import language_model_loss

CPU = torch.device("cpu")
BESIDE: Final = ("bare", "transformers", "hf_trainer", "compiled")


class Task(NamedTuple):
    """What all loops do."""

    config: RunConfig
    bf16: bool
    threads: int  # 0: as many as torch takes


Pause: TypeAlias = Callable[[], None]
"""What a loop calls before its first step, and after each: it returns when the next one is due."""
Loop: TypeAlias = Callable[[Task, Pause], None]
"""Takes steps for ever, with a pause between any two, in which it reads the loss."""


def main() -> None:
    arguments = parse()
    config = run_config(
        PRESETS[arguments.model],
        sequence_length=arguments.sequence_length,
        batch=arguments.batch,
    )
    bf16 = arguments.dtype == "bf16"
    if arguments.dtype == "auto":
        bf16 = computes_in_bf16(CPU, width=config.model.width)
    task = Task(config, bf16=bf16, threads=arguments.threads)
    names = ["atoll", *arguments.beside, "products"]
    first_s: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.starts):
        with ExitStack() as stack:
            lines = {name: stack.enter_context(process(name, task)) for name in names}
            first_s = {name: step(name, lines) for name in names}
            for turn in range(arguments.steps):
                for place in order(len(names), turn=turn):
                    seconds[names[place]].append(step(names[place], lines))
    result = summary(config, seconds) | {
        "model": arguments.model,
        "dtype": "bf16" if bf16 else "fp32",
        "threads": arguments.threads or torch.get_num_threads(),
        "first_step_s": {name: round(first_s[name], 1) for name in names if name != "products"},
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
    parser.add_argument("--starts", type=int, default=4, help="of the processes, one after another")
    parser.add_argument("--steps", type=int, default=8, help="turns that count, in each start")
    parser.add_argument(
        "--dtype", choices=["auto", "fp32", "bf16"], default="auto", help="auto: as peers choose"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=BESIDE,
        default=BESIDE[:3],
        help="what ours is compared with",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    return parser.parse_args()


# --- the processes -------------------------------------------------------------------------------


@contextmanager
def process(name: str, task: Task) -> Iterator[Connection]:
    """Start a loop, and yield the line to it when it is about to take its first step.

    It is forked from a process that has imported what takes seconds, and computed nothing.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "transformers.trainer", "transformers.models.llama.modeling_llama"]
    )
    ours, theirs = context.Pipe()
    started = context.Process(target=run, args=(name, task, theirs), daemon=True)
    started.start()
    theirs.close()
    with ours:
        wait_for(name, ours)
        yield ours
    started.join()


def step(name: str, lines: dict[str, Connection]) -> float:
    """Let a loop take a step; return the seconds that it took."""
    lines[name].send(None)
    return wait_for(name, lines[name])


def wait_for(name: str, line: Connection) -> float:
    try:
        seconds: float = line.recv()
    except EOFError:
        sys.exit(f"trainer.py: {name} has ended, for the reason above")
    return seconds


def run(name: str, task: Task, line: Connection) -> None:
    """Be the process of this loop, until nobody is at the other end of the line."""
    if name in ("transformers", "hf_trainer"):
        set_threads(task.threads)
    else:
        prepare_process(CPU, num_threads=task.threads)
    began_at = monotonic_s()

    def pause() -> None:
        nonlocal began_at
        line.send(monotonic_s() - began_at)
        try:
            line.recv()
        except EOFError:
            sys.exit()
        began_at = monotonic_s()

    LOOPS[name](task, pause)


def order(number: int, *, turn: int) -> list[int]:
    """Return who comes when in a turn; in 2 `number` turns each is as often behind each other.

    What goes before, and leaves caches and clocks as they are, is worth some hundredths. By E. J.
    Williams, "Experimental designs balanced for the estimation of residual effects", 1949.
    """
    zigzag = [-(place // 2) if place % 2 == 0 else (place + 1) // 2 for place in range(number)]
    places = [(place + turn // 2) % number for place in zigzag]
    return places[:: -1 if turn % 2 else 1]


# --- the loops -----------------------------------------------------------------------------------


def atoll(task: Task, pause: Pause, *, compiler: Compiler = "none") -> None:
    config = task.config
    loop = inner_loop(
        config, CPU, micro_batch=0, compiler=compiler, precision="bf16" if task.bf16 else "fp32"
    )
    size = config.inner.batch_sequences
    pause()
    for number in count():
        stop = (number + 1) * size
        loop.step([(stop - size, stop)], step=number, then=[(stop, stop + size)])
        pause()


def bare(task: Task, pause: Pause) -> None:
    config = task.config
    model = Llama(config.model)
    as_small_as_in_a_run_(model)
    tokens_BT, targets_BT = random_tokens(config)

    def loss() -> Tensor:
        with autocast(CPU, bf16=task.bf16):
            objective, _ = language_model_loss(
                model.hidden(tokens_BT),
                model.head_weight,
                targets_BT,
                num_targets=targets_BT.numel(),
                z_loss=0.0,
            )
        return objective

    plain_loop(model, config, loss, pause)


def transformers(task: Task, pause: Pause) -> None:
    model = their_model(task.config)
    tokens_BT, _ = random_tokens(task.config)

    def loss() -> Tensor:
        with autocast(CPU, bf16=task.bf16):
            objective: Tensor = model(input_ids=tokens_BT, labels=tokens_BT).loss
        return objective

    plain_loop(model, task.config, loss, pause)


def their_model(config: RunConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaConfig(
        **describe(config.model),
        max_position_embeddings=config.data.sequence_length,
        use_cache=False,
    )
    return LlamaForCausalLM(theirs).float()


def hf_trainer(task: Task, pause: Pause) -> None:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class InTurns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pause()

        def on_log(self, *_: Any, **__: Any) -> None:
            pause()

    batch, inner = task.config.inner.batch_sequences, task.config.inner
    tokens_BT = torch.cat([random_tokens(task.config)[0] for _ in range(100)])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=their_model(task.config),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch,
                max_steps=sys.maxsize,
                learning_rate=inner.lr,
                lr_scheduler_type="constant",
                weight_decay=inner.weight_decay,
                adam_beta1=inner.beta1,
                adam_beta2=inner.beta2,
                adam_epsilon=inner.eps,
                max_grad_norm=inner.clip_norm,
                optim="adamw_torch_fused",
                bf16=task.bf16,
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


def plain_loop(
    model: torch.nn.Module, config: RunConfig, loss: Callable[[], Tensor], pause: Pause
) -> None:
    inner = config.inner
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=inner.lr,
        betas=(inner.beta1, inner.beta2),
        eps=inner.eps,
        weight_decay=inner.weight_decay,
        fused=True,
    )

    pause()
    while True:
        optimizer.zero_grad()
        objective = loss()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), inner.clip_norm)
        optimizer.step()
        objective.item()
        pause()


def products(task: Task, pause: Pause) -> None:
    config = task.config
    num_tokens = config.inner.batch_sequences * config.data.sequence_length
    dtype = torch.bfloat16 if task.bf16 else torch.float32
    weights = [p.detach().to(dtype) for p in Llama(config.model).parameters() if p.ndim == 2]
    if not config.model.tied_embeddings:
        weights = weights[1:]  # the embedding is a lookup
    inputs = {size: torch.randn(num_tokens, size, dtype=dtype) for w in weights for size in w.shape}
    pause()
    while True:
        for weight in weights:
            rows, columns = weight.shape
            inputs[columns] @ weight.T
            inputs[rows] @ weight
            inputs[rows].T @ inputs[columns]
        pause()


def random_tokens(config: RunConfig) -> tuple[Tensor, Tensor]:
    size = (config.inner.batch_sequences, config.data.sequence_length + 1)
    tokens_BS = torch.randint(0, config.model.vocab_size, size)
    return tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous()


LOOPS: Final[dict[str, Loop]] = {
    "atoll": atoll,
    "compiled": partial(atoll, compiler="inductor"),
    "bare": bare,
    "transformers": transformers,
    "hf_trainer": hf_trainer,
    "products": products,
}


# --- what came out ------------------------------------------------------------------------------


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
                "ratio_hf_trainer": ("atoll", "hf_trainer"),
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
