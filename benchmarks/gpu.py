"""What training and the exchange cost on an accelerator: one line of JSON for each question.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --models tiny --sequence-length 64 --batch 2 --steps 4

By itself it takes the model of 1 B parameters and as many layers of that of 8 B as fit, compiled,
and less than ten minutes: what matters most comes first, and what there is no time for is left out.
A part that fails is named, and does not keep the others from being asked.

    step        seconds of an inner step, tokens per second, utilisation of the device (MFU),
                memory at its peak and as predicted (model.memory); with --plain once more, layers
                not compiled, which is what the prediction is of; with --sharded, by FSDP2 with a
                single rank; and with --fp8, with products in 8 bits
    breakdown   what such a step spends its time on, by torch's profiler
    packed      the same with eight documents in a sample, masked by numbers, and in blocks where
                layers are compiled for CUDA; and how far apart the two losses are
    snapshot    seconds that training stands still for one, and until it is in shared memory
    beside      a step while a snapshot is copied, over a step without: pairs, one after the other
    merge       seconds between two steps, for each way to merge
    goals       MFU of 50 %, snapshot and merge together 1 % of a round of 100 steps; of layers that
                are not compiled, memory within 5 % of the prediction: which are reached
    reference   largest difference of loss and gradient from those of a CPU in fp32, small model, as
                written and compiled; with --fp8 also in 8 bits (on a CPU these are emulated)

MFU counts 6 N + 12 L D T operations for a token (`model.accounting`) against the peak of the device
in dense bf16 products, also for those in 8 bits; of a device that is in no table, it is measured
(`train.peak`).
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any, NamedTuple, cast, get_args

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from breakdown import breakdown
from numpy.typing import NDArray

from atoll.clock import monotonic_s
from atoll.config import DataConfig, InnerConfig, ModelConfig, RunConfig, SourceConfig, SyncConfig
from atoll.data.batches import Batch
from atoll.errors import ConfigError
from atoll.model.accounting import count_parameters, flops_per_token
from atoll.model.flat import load_flat_
from atoll.model.layout import Layout, layout_of
from atoll.model.llama import Llama
from atoll.model.memory import Training, largest, trainer_bytes
from atoll.model.presets import PRESETS
from atoll.model.shapes import require_fp8_shapes
from atoll.train.channel import Merge, Seat, Snapshot
from atoll.train.compiled import Compiler
from atoll.train.device import Precision, computes_in_bf16, device_name, pick_device
from atoll.train.exchanged import let_gpu_reach, merge_, start_snapshot
from atoll.train.fit import USABLE, free_memory
from atoll.train.fp8 import require_fp8
from atoll.train.inner import Computing, InnerLoop, autocast
from atoll.train.loss import CHUNK_LOGITS, language_model_loss
from atoll.train.parallel import ALONE, Ranks, held, join
from atoll.train.peak import peak_of
from atoll.train.shared import SharedVectors
from atoll.train.trainer import build

WARM_UP_STEPS = 3
STEPS_OF_A_ROUND = 100
LEAST_MFU, MEMORY_WITHIN, MOST_LOST = 0.5, 0.05, 0.01
# Some of its matrices are large enough for products in 8 bits.
REFERENCE = msgspec.structs.replace(PRESETS["tiny"], ffn_width=2048)
REFERENCE_LENGTH = 128


class Way(NamedTuple):
    """How steps are taken."""

    precision: Precision | None = None  # as the device is made for
    sharded: bool = False  # by FSDP2, with a single rank
    plain: bool = False  # layers as they are written


class Part(NamedTuple):
    """Some of the questions, which share a model on the device."""

    about: dict[str, Any]
    lines: Callable[[], Iterator[dict[str, Any]]]


def main() -> None:
    arguments = parse()
    device = pick_device(arguments.device)
    began_at, longest_s, has_failed = monotonic_s(), 0.0, False
    for part in parts(device, arguments):
        part_at = monotonic_s()
        if part_at - began_at + longest_s > arguments.seconds:
            show({**part.about, "question": "left out", "reason": "no time is left for it"})
            continue
        try:
            for line in part.lines():
                show({**part.about, **line})
        except RuntimeError as error:  # out of memory, or a kernel that is missing: the next part
            has_failed = True
            show({**part.about, "question": "failed", "reason": str(error)[:500]})
        longest_s = max(longest_s, monotonic_s() - part_at)
        forget_peak(device)
        if dist.is_initialized():  # the next model has ranks of its own
            dist.destroy_process_group()
    sys.exit(int(has_failed))


def parts(device: torch.device, arguments: argparse.Namespace) -> Iterator[Part]:
    """Yield what is asked, that which matters most first."""
    models = {name: cut_to_fit(PRESETS[name], device, arguments) for name in arguments.models}

    def part(name: str, way: Way) -> Part:
        about = {
            "model": name,
            "layers": models[name].num_layers,
            "compiled": arguments.compiler != "none" and not way.plain,
            "sharded": way.sharded,
        }
        return Part(about, partial(of_model, models[name], device, arguments, way=way))

    yield from (part(name, Way()) for name in models)
    compilers: set[Compiler] = {"none", arguments.compiler}
    for compiler in sorted(compilers, key="none".__ne__):
        about = {"compiled": compiler != "none"}
        yield Part(about, partial(references, device, compiler=compiler))
    if arguments.fp8 and not refusal(REFERENCE, device, sequence_length=REFERENCE_LENGTH):
        yield Part({}, partial(references, device, precision="fp8"))
    for name in models:
        if arguments.plain and arguments.compiler != "none":
            yield part(name, Way(plain=True))
        if arguments.sharded:
            yield part(name, Way(sharded=True))
        refused = refusal(models[name], device, sequence_length=arguments.sequence_length)
        if arguments.fp8 and refused:
            line = {"question": "step", "precision": "fp8", "refused": refused}
            yield Part({"model": name}, partial(iter, [line]))
        elif arguments.fp8:
            yield part(name, Way(precision="fp8"))


def of_model(
    model: ModelConfig, device: torch.device, arguments: argparse.Namespace, *, way: Way
) -> Iterator[dict[str, Any]]:
    """Yield the answers for a model: all of them for it as it is, else those about its steps."""
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(model, device, Path(folder), arguments=arguments, way=way)
        for line in peer.answers(arguments.steps, everything=way == Way()):
            yield {"precision": peer.precision, **line}


def refusal(model: ModelConfig, device: torch.device, *, sequence_length: int) -> str:
    """Return why the model does not train in fp8 here, or nothing; a CPU emulates it."""
    try:
        if device.type == "cpu":
            require_fp8_shapes(model, sequence_length=sequence_length)
        else:
            require_fp8(device, model, sequence_length=sequence_length)
    except ConfigError as error:
        return str(error)
    return ""


def cut_to_fit(
    model: ModelConfig, device: torch.device, arguments: argparse.Namespace
) -> ModelConfig:
    """Return the model with as many layers as are asked for, or as fit on the device."""

    def with_layers(num_layers: int) -> ModelConfig:
        return msgspec.structs.replace(model, num_layers=num_layers)

    def fits(num_layers: int) -> bool:
        config = run_config(
            with_layers(num_layers),
            sequence_length=arguments.sequence_length,
            batch=arguments.batch,
        )
        bf16 = computes_in_bf16(device, width=model.width)
        how = training(device, micro_batch=arguments.micro_batch, bf16=bf16)
        # FSDP2 gathers its layers, also from a single rank.
        gathered = trainer_bytes(config, how._replace(devices=2)).gathered
        needed = trainer_bytes(config, how).total + (gathered if arguments.sharded else 0)
        return needed <= USABLE * (room_bytes or float("inf"))

    if arguments.layers:
        return with_layers(arguments.layers)
    room_bytes = free_memory(device)
    return with_layers(largest(model.num_layers, fits=fits))


def training(device: torch.device, *, micro_batch: int, bf16: bool, fp8: bool = False) -> Training:
    return Training(micro_batch, bf16, chunk_logits=CHUNK_LOGITS[device.type], fp8=fp8)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="+", choices=list(PRESETS), default=["1b", "8b"])
    parser.add_argument("--layers", type=int, default=0, help="cut to so many; 0: to what fits")
    parser.add_argument("--sequence-length", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=4, help="samples of an inner step")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=540, help="no part begins beyond these")
    for way, what in (
        ("plain", "of layers that are not compiled"),
        ("sharded", "by FSDP2 with a single rank"),
        ("fp8", "with products in fp8"),
    ):
        parser.add_argument(
            f"--{way}",
            action=argparse.BooleanOptionalAction,
            default=True,
            help=f"a step {what} as well",
        )
    parser.add_argument(
        "--compiler", default="inductor", choices=get_args(Compiler), help="of the layers"
    )
    parser.add_argument("--pairs", type=int, default=6, help="snapshots and merges of a kind")
    return parser.parse_args()


def show(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


class RandomBatches:
    """Samples of random tokens in place of a data set."""

    def __init__(self, *, vocab_size: int, sequence_length: int) -> None:
        self._vocab_size, self._sequence_length = vocab_size, sequence_length
        self.num_documents = 1  # in each sample, of equal length

    def batch(self, start: int, stop: int) -> Batch:
        size = (stop - start, self._sequence_length + 1)
        tokens_BS = np.random.default_rng(start).integers(0, self._vocab_size, size)
        document_T = np.arange(self._sequence_length) * self.num_documents // self._sequence_length
        documents_BT = np.tile(document_T, (size[0], 1))
        return Batch(tokens_BS[:, :-1], tokens_BS[:, 1:], documents_BT)


def run_config(model: ModelConfig, *, sequence_length: int, batch: int) -> RunConfig:
    return RunConfig(
        name="benchmark",
        model=model,
        data=DataConfig(
            sources=(SourceConfig(kind="preset", name="sotu"),), sequence_length=sequence_length
        ),
        inner=InnerConfig(lr=1e-4, batch_sequences=batch),
        sync=SyncConfig(rounds=100, inner_steps=100),
    )


def inner_loop(
    config: RunConfig,
    device: torch.device,
    *,
    micro_batch: int,
    ranks: Ranks = ALONE,
    compiler: Compiler = "none",
    precision: Precision | None = None,
) -> InnerLoop:
    """Return a loop over random tokens; precision None: as the device is made for."""
    if precision is None:
        precision = "bf16" if computes_in_bf16(device, width=config.model.width) else "fp32"
    batches = RandomBatches(
        vocab_size=config.model.vocab_size, sequence_length=config.data.sequence_length
    )
    model = build(config.model, device, ranks=ranks, precision=precision, compiler=compiler)
    as_small_as_in_a_run_(model)
    return InnerLoop(
        model,
        batches,  # type: ignore[arg-type]
        config,
        how=Computing(micro_batch=micro_batch, bf16=precision != "fp32", compiler=compiler),
        ranks=ranks,
    )


@torch.no_grad()
def as_small_as_in_a_run_(model: Llama) -> None:
    """Give the model values of the size that they have at the start of a run (`model.initial`).

    With torch's own embedding, fifty times as large, logits differ by more than 100. Their
    exponentials are subnormal then, of which a CPU computes a tenth as many per second. And what
    FSDP2 has made has no values yet.
    """
    for parameter in model.parameters():
        rows = held(parameter)
        if parameter.ndim > 1:
            rows.normal_(std=0.02)
        else:
            rows.fill_(1.0)


def figures_of(
    model: ModelConfig,
    device: torch.device,
    *,
    seconds: float,
    num_samples: int,
    sequence_length: int,
    bf16: bool,
) -> dict[str, Any]:
    """Return what a step of so many samples says of the device; its memory is that until now."""
    in_use_gb = peak_gb(device)  # before the device is measured, if it is unknown
    tokens_per_s = num_samples * sequence_length / seconds
    flops_per_s = tokens_per_s * flops_per_token(model, sequence_length=sequence_length)
    peak = peak_of(device, bf16=bf16)
    return {
        "device": device_name(device),
        "parameters": count_parameters(model).total,
        "sequence_length": sequence_length,
        "step_s": round(seconds, 4),
        "tokens_per_s": round(tokens_per_s, 1),
        "tflops_per_s": round(flops_per_s / 1e12, 3),
        "mfu": round(flops_per_s / peak.flops, 4),
        "peak_tflops_per_s": round(peak.flops / 1e12, 3),
        "peak_measured": peak.measured,
        "peak_gb": in_use_gb,
    }


class Timing(NamedTuple):
    stands_still_s: float
    meanwhile_s: float
    whole_s: float


class Peer:
    """A trainer's parts without an agent: inner loop, shared vectors, snapshot and merge."""

    def __init__(
        self,
        model: ModelConfig,
        device: torch.device,
        folder: Path,
        *,
        arguments: argparse.Namespace,
        way: Way,
    ) -> None:
        self.config = run_config(
            model, sequence_length=arguments.sequence_length, batch=arguments.batch
        )
        self.device = device
        self.layout: Layout = layout_of(self.config)
        self._folder = folder
        ranks = ALONE
        if way.sharded:
            ranks = join(Seat(rank=0, num_ranks=1, store=str(folder / "store")), device)
        self.loop = inner_loop(
            self.config,
            device,
            micro_batch=arguments.micro_batch,
            ranks=ranks,
            compiler="none" if way.plain else arguments.compiler,
            precision=way.precision,
        )
        self._is_plain = self.loop.how.compiler == "none"
        self.precision = way.precision or ("bf16" if self.loop.bf16 else "fp32")
        self.pairs = arguments.pairs
        self._next = 0

    def answers(self, num_steps: int, *, everything: bool) -> Iterator[dict[str, Any]]:
        """Yield what a step takes; with `everything`, also what there is between steps."""
        step = self.step(num_steps)
        yield step
        yield self.breakdown()
        if self._is_plain and step["peak_gb"] is not None:
            yield memory_goal(step)
        if not everything:
            return
        yield self.packed(num_steps)
        vectors = SharedVectors.for_peer(self._folder, self.layout.num_values)
        let_go = let_gpu_reach(vectors, self.device)
        try:
            exchange = [*self.exchange(vectors), *self.merges(vectors)]
        finally:
            let_go()
            vectors.unlink()
        yield from exchange
        yield goals(step, exchange)

    def one_step(self) -> float:
        """Take a step; return its seconds. The loss is read, so the device is done with it."""
        batch = self.config.inner.batch_sequences
        span = (self._next * batch, (self._next + 1) * batch)
        following = (span[1], span[1] + batch)
        began_at = monotonic_s()
        self.loop.step([span], step=self._next, then=[following])
        synchronise(self.device)
        self._next += 1
        return monotonic_s() - began_at

    def step(self, num_steps: int) -> dict[str, Any]:
        for _ in range(WARM_UP_STEPS):
            self.one_step()
        seconds = median(self.one_step() for _ in range(num_steps))
        figures = figures_of(
            self.config.model,
            self.device,
            seconds=seconds,
            num_samples=self.config.inner.batch_sequences,
            sequence_length=self.config.data.sequence_length,
            bf16=self.loop.bf16,
        )
        how = training(
            self.device,
            micro_batch=self.loop.micro_batch,
            bf16=self.loop.bf16,
            fp8=self.precision == "fp8",
        )
        predicted = trainer_bytes(self.config, how)  # samples of one document have no mask
        return {
            "question": "step",
            **figures,
            "predicted_gb": round((predicted.total - predicted.masks) / 1e9, 2),
        }

    def breakdown(self) -> dict[str, Any]:
        return {"question": "breakdown", **breakdown(self.one_step, self.device)}

    def packed(self, num_steps: int) -> dict[str, Any]:
        """Return seconds of a step for each kind of mask, and the losses of a sample by each."""
        model, batches = self.loop.model, cast(Any, self.loop.batches)
        batches.num_documents = 8
        kinds = {"numbers": False, **({"blocks": True} if model.masks_in_blocks else {})}
        found: dict[str, Any] = {"question": "packed"}
        losses = []
        for name, model.masks_in_blocks in kinds.items():
            for _ in range(WARM_UP_STEPS):
                self.one_step()
            found[f"step_s_{name}"] = round(median(self.one_step() for _ in range(num_steps)), 4)
            losses.append(self.loss_of_a_sample())
        found["loss_difference"] = max(losses) - min(losses)
        batches.num_documents = 1
        return found

    def loss_of_a_sample(self) -> float:
        batch = self.loop.batches.batch(0, 1)
        tokens_BT, targets_BT, documents_BT = (
            torch.from_numpy(rows_BT).to(self.device) for rows_BT in batch
        )
        # With gradients, as in training: without, the layers would be compiled once more.
        with autocast(self.device, bf16=self.loop.bf16):
            _, cross_entropy = language_model_loss(
                self.loop.model.hidden(tokens_BT, documents_BT),
                self.loop.model.head_weight,
                targets_BT,
                num_targets=targets_BT.numel(),
                z_loss=0.0,
            )
        return cross_entropy.item()

    def exchange(self, vectors: SharedVectors) -> Iterator[dict[str, Any]]:
        timings = [self.snapshot(vectors, lambda: 0.0) for _ in range(self.pairs)]
        yield {
            "question": "snapshot",
            "stands_still_s": round(median(t.stands_still_s for t in timings), 5),
            "whole_s": round(median(t.whole_s for t in timings), 4),
        }
        ratios = []
        for _ in range(self.pairs):
            without_s = self.one_step()
            timing = self.snapshot(vectors, self.one_step)
            ratios.append((timing.meanwhile_s + timing.stands_still_s) / without_s)
        yield {
            "question": "beside",
            "ratio": round(median(ratios), 4),
            "ratios": [round(ratio, 4) for ratio in sorted(ratios)],
        }

    def snapshot(self, vectors: SharedVectors, meanwhile: Callable[[], float]) -> Timing:
        """Take a snapshot of the whole model, and do something that takes time meanwhile."""
        self.loop.drop_gradients()  # as a trainer does
        synchronise(self.device)
        began_at = monotonic_s()
        finish = start_snapshot(
            self.loop.model,
            self.layout,
            vectors=vectors,
            snapshot=Snapshot(start=0, stop=self.layout.num_values),
        )
        stands_still_s = monotonic_s() - began_at
        ended_at: list[float] = []

        def wait() -> None:
            if finish is not None:
                finish()
            ended_at.append(monotonic_s())

        waiting = Thread(target=wait)
        waiting.start()
        meanwhile_s = meanwhile()
        waiting.join()
        return Timing(stands_still_s, meanwhile_s, ended_at[0] - began_at)

    def merges(self, vectors: SharedVectors) -> Iterator[dict[str, Any]]:
        vectors.global_N[:] = vectors.snapshot_N
        self.loop.drop_gradients()
        for how in ("replace", "carry", "blend"):
            order = Merge(how=how, start=0, stop=self.layout.num_values, alpha=0.5)
            seconds = []
            for _ in range(max(1, self.pairs // 4)):  # each moves the model twice
                began_at = monotonic_s()
                merge_(self.loop.model, self.layout, vectors=vectors, merge=order)
                synchronise(self.device)
                seconds.append(monotonic_s() - began_at)
            yield {"question": "merge", "how": how, "seconds": round(median(seconds), 4)}


def goals(step: dict[str, Any], exchange: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that the trainer is to reach on an H100, and which of them it does."""
    beside = next(line["ratio"] for line in exchange if line["question"] == "beside")
    merge_s = next(line["seconds"] for line in exchange if line.get("how") == "carry")
    lost_s = max(0.0, beside - 1) * step["step_s"] + merge_s
    share = lost_s / (STEPS_OF_A_ROUND * step["step_s"])
    return {
        "question": "goals",
        "mfu": step["mfu"],
        "exchange": round(share, 4),
        "reached": {"mfu": step["mfu"] >= LEAST_MFU, "exchange": share <= MOST_LOST},
    }


def memory_goal(step: dict[str, Any]) -> dict[str, Any]:
    """Return how near the prediction is: what autograd keeps; compiled code keeps what it likes."""
    memory = step["peak_gb"] / step["predicted_gb"]
    return {
        "question": "goals",
        "memory": round(memory, 3),
        "reached": {"memory": abs(memory - 1) <= MEMORY_WITHIN},
    }


def references(
    device: torch.device, *, precision: Precision | None = None, compiler: Compiler = "none"
) -> Iterator[dict[str, Any]]:
    """Yield how far the first loss and gradient are from those of a CPU in fp32."""
    config = run_config(REFERENCE, sequence_length=REFERENCE_LENGTH, batch=4)
    layout = layout_of(config)
    values_N: NDArray[np.float32] = (
        np.random.default_rng(0).normal(0, 0.02, layout.num_values).astype(np.float32)
    )
    losses, gradients = [], []
    ways: tuple[tuple[torch.device, Precision | None, Compiler], ...] = (
        (torch.device("cpu"), None, "none"),
        (device, precision, compiler),
    )
    for where, how, by in ways:
        loop = inner_loop(config, where, micro_batch=4, precision=how, compiler=by)
        load_flat_(loop.model, values_N, layout)
        losses.append(loop.step([(0, 4)], step=0).loss)
        gradients.append(
            torch.cat([p.grad.flatten().float().cpu() for p in loop.model.parameters()])  # type: ignore[union-attr]
        )
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    yield {
        "question": "reference",
        "precision": precision or "auto",
        "loss_difference": abs(losses[1] - losses[0]),
        "gradient_error": float(error),
    }


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    torch.compiler.reset()  # a second width would be compiled for any width, which is slower
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2)


if __name__ == "__main__":
    main()
