"""What an inner step costs by torchtitan, of models with the shapes of ours: beside `gpu.py`.

    pip install torchtitan==0.2.2
    python benchmarks/gpu_torchtitan.py --models 1b 8b --layers 0 12
    python benchmarks/gpu_torchtitan.py --device cpu --models tiny --sequence-length 64 --steps 4

Model, compiling of its blocks, loss, optimizer and clipping are torchtitan's own, and a step is in
the order of its trainer's; tokens are random, the learning rate is constant, and nothing is
recomputed unless --recompute asks for it (its default is every second layer; ours is none). Mixed
precision is its way for one GPU, autocast over fp32. With --sharded a second line is by its FSDP2
with a single rank: its way for several and, since 0.3.0, which needs a torch later than 2.11, for
one as well.

One line of JSON for each, with the fields of the line `step` of `gpu.py` and the same operations
for a token. Its Llama has no tied embeddings: `1b` has 1.50 B parameters in place of 1.24, and as
many operations, since an embedding is a lookup.
"""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from math import prod
from statistics import median
from typing import Any, NamedTuple, get_args

import msgspec
import torch
import torch.distributed as dist
from gpu import WARM_UP_STEPS, RandomBatches, figures_of, forget_peak, show, synchronise
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from atoll.clock import monotonic_s
from atoll.config import ModelConfig
from atoll.model.accounting import count_parameters
from atoll.model.presets import PRESETS
from atoll.train.compiled import Compiler
from atoll.train.device import computes_in_bf16, pick_device
from atoll.train.parallel import stay_on_this_machine


def main() -> None:
    arguments = parse()
    require_torchtitan()
    device = pick_device(arguments.device)
    has_failed = False
    layers = arguments.layers or [0] * len(arguments.models)
    for name, num_layers in zip(arguments.models, layers, strict=True):
        model = shaped_like(PRESETS[name], num_layers=num_layers)
        for sharded in (False, True) if arguments.sharded else (False,):
            about = {"model": name, "layers": model.num_layers, "sharded": sharded}
            try:
                show({**about, **Loop(model, device, arguments, sharded=sharded).line()})
            except RuntimeError as error:  # out of memory, or a kernel that is missing: the next
                has_failed = True
                show({**about, "question": "failed", "reason": str(error)[:500]})
            torch.compiler.reset()  # or the next is compiled for any width, and is slower
            if dist.is_initialized():
                dist.destroy_process_group()
            forget_peak(device)
    sys.exit(int(has_failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="+", choices=list(PRESETS), default=["1b", "8b"])
    parser.add_argument(
        "--layers", type=int, nargs="+", help="cut each model to so many; 0: all that it has"
    )
    parser.add_argument("--sequence-length", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=2, help="samples of an inner step")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--sharded",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a step by FSDP2 with a single rank as well",
    )
    parser.add_argument(
        "--compiler", default="inductor", choices=get_args(Compiler), help="of the layers"
    )
    parser.add_argument(
        "--recompute",
        default="none",
        choices=("none", "selective", "full"),
        help="activation checkpointing, by torchtitan's names",
    )
    arguments = parser.parse_args()
    if arguments.layers and len(arguments.layers) != len(arguments.models):
        parser.error("--layers: one number for each of --models")
    if arguments.batch % arguments.micro_batch:
        parser.error("--batch: a multiple of --micro-batch")
    return arguments


def require_torchtitan() -> None:
    try:
        import torchtitan.models.llama3  # noqa: F401
    except ImportError as error:
        sys.exit(f"torchtitan does not import ({error}): pip install torchtitan==0.2.2")


def shaped_like(model: ModelConfig, *, num_layers: int) -> ModelConfig:
    """Return the model that torchtitan can have in place of this one: embeddings are not tied."""
    return msgspec.structs.replace(
        model, num_layers=num_layers or model.num_layers, tied_embeddings=False
    )


class Parts(NamedTuple):
    """What torchtitan makes of a model and its own configuration."""

    model: nn.Module
    loss: Any
    optimizers: Any
    mixed: AbstractContextManager[Any]  # what forward passes are in


def job_config(arguments: argparse.Namespace, *, bf16: bool) -> Any:
    """Return torchtitan's own defaults, but for what is asked here."""
    from torchtitan.config import JobConfig

    config = JobConfig()
    config.training.seq_len = arguments.sequence_length
    config.training.mixed_precision_param = "bfloat16" if bf16 else "float32"
    config.activation_checkpoint.mode = arguments.recompute
    config.compile.enable = arguments.compiler != "none"
    config.compile.backend = arguments.compiler
    return config


def parts(shape: ModelConfig, device: torch.device, config: Any, *, sharded: bool) -> Parts:
    """Return what a trainer of torchtitan makes when it starts, in its order."""
    from torchtitan.components.loss import build_cross_entropy_loss
    from torchtitan.components.optimizer import build_optimizers
    from torchtitan.config import TORCH_DTYPE_MAP
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.utils import maybe_enable_amp
    from torchtitan.models.llama3 import Transformer, parallelize_llama
    from torchtitan.models.llama3.infra.parallelize import apply_fsdp

    of_parallelism = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp", "world_size")
    alone = ParallelDims(**dict.fromkeys(of_parallelism, 1))
    arguments = model_arguments(shape)
    arguments.update_from_config(config)
    with torch.device("meta"):
        model = Transformer(arguments)
    parallelize_llama(model, alone, config)
    if sharded:
        dtypes = {
            "param_dtype": TORCH_DTYPE_MAP[config.training.mixed_precision_param],
            "reduce_dtype": TORCH_DTYPE_MAP[config.training.mixed_precision_reduce],
        }
        apply_fsdp(model, mesh_of_one(device), **dtypes, pp_enabled=False)
        mixed: AbstractContextManager[Any] = nullcontext()
    else:
        mixed = maybe_enable_amp(alone, config.training.mixed_precision_param, device.type)
    model.to_empty(device=device)
    with torch.no_grad():
        model.init_weights()
    model.train()
    assert sum(prod(p.shape) for p in model.parameters()) == count_parameters(shape).total
    optimizers = build_optimizers([model], config.optimizer, alone)
    return Parts(model, build_cross_entropy_loss(config), optimizers, mixed)


def model_arguments(shape: ModelConfig) -> Any:
    """Return torchtitan's own words for the shape."""
    from torchtitan.models.llama3 import TransformerModelArgs

    return TransformerModelArgs(
        dim=shape.width,
        n_layers=shape.num_layers,
        n_heads=shape.num_heads,
        n_kv_heads=shape.num_kv_heads,
        vocab_size=shape.vocab_size,
        # Its feed-forward layers are 8/3 as wide as the model, times one, rounded up to the other.
        ffn_dim_multiplier=3 * shape.ffn_width / (8 * shape.width),
        multiple_of=shape.ffn_width,
        rope_theta=500_000,
    )


def mesh_of_one(device: torch.device) -> Any:
    stay_on_this_machine()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device.type, (1,), mesh_dim_names=("fsdp",))


class Loop:
    """The steps of torchtitan's trainer, over random tokens."""

    def __init__(
        self,
        shape: ModelConfig,
        device: torch.device,
        arguments: argparse.Namespace,
        *,
        sharded: bool,
    ) -> None:
        self.shape, self.device, self.arguments = shape, device, arguments
        self.bf16 = computes_in_bf16(device, width=shape.width)
        self.config = job_config(arguments, bf16=self.bf16)
        self.parts = parts(shape, device, self.config, sharded=sharded)
        self.batches = RandomBatches(
            vocab_size=shape.vocab_size, sequence_length=arguments.sequence_length
        )
        self._next_sample = 0
        self.loss = 0.0  # of the last step

    def line(self) -> dict[str, Any]:
        for _ in range(WARM_UP_STEPS):
            self.one_step()
        seconds = median(self.one_step() for _ in range(self.arguments.steps))
        figures = figures_of(
            self.shape,
            self.device,
            seconds=seconds,
            num_samples=self.arguments.batch,
            sequence_length=self.arguments.sequence_length,
            bf16=self.bf16,
        )
        return {
            "question": "step",
            "torchtitan": version("torchtitan"),
            "torch": torch.__version__,
            "precision": "bf16" if self.bf16 else "fp32",
            "recompute": self.arguments.recompute,
            "tied_embeddings": self.shape.tied_embeddings,
            **figures,
            "loss": round(self.loss, 3),
        }

    def one_step(self) -> float:
        """Take a step; return its seconds. The loss is read, so the device is done with it."""
        from torchtitan.distributed.utils import clip_grad_norm_

        model, _, optimizers, _ = self.parts
        began_at = monotonic_s()
        optimizers.zero_grad()
        losses = [
            self.accumulate() for _ in range(self.arguments.batch // self.arguments.micro_batch)
        ]
        clip_grad_norm_(list(model.parameters()), self.config.training.max_norm, foreach=True)
        optimizers.step()
        self.loss = torch.stack(losses).sum().item()
        synchronise(self.device)
        return monotonic_s() - began_at

    def accumulate(self) -> torch.Tensor:
        """Add the gradients of a micro-batch; return its part of the loss."""
        start = self._next_sample
        self._next_sample += self.arguments.micro_batch
        batch = self.batches.batch(start, self._next_sample)
        tokens_BT = torch.from_numpy(batch.tokens_BT).to(self.device)
        targets_BT = torch.from_numpy(batch.targets_BT).to(self.device)
        num_targets = self.arguments.batch * self.arguments.sequence_length
        with self.parts.mixed:
            logits_BTV = self.parts.model(tokens_BT)
            loss: torch.Tensor = self.parts.loss(logits_BTV, targets_BT) / num_targets
        del logits_BTV  # as there: not beside the gradients
        loss.backward()
        return loss.detach()


if __name__ == "__main__":
    main()
