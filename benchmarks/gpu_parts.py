"""What the parts of a step and of an exchange take on a GPU: one line of JSON for each.

    python benchmarks/gpu_parts.py

    attention   forward and backward pass of a layer of `1b` and of `8b`, by each kernel that torch
                has for it, and how far the results are from those in fp64
    loss        both passes, operation by operation and compiled, for chunks of several sizes
    copies      GB/s between the device and shared memory, through the driver's memory and pinned
                where it is; seconds to pin a gigabyte; and whether a refusal to pin it is forgotten

`gpu.py` has the step as a whole; here one sees which choice pays before it is made. Less than a
minute and a half, and it takes a GPU: kernels of other devices are others.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from atoll.clock import monotonic_s
from atoll.config import ModelConfig
from atoll.errors import ConfigError
from atoll.model.accounting import FP32_BYTES
from atoll.model.devices import peak_by_name
from atoll.model.presets import PRESETS
from atoll.train.compiled import loss_of_chunk
from atoll.train.device import device_name, pick_device
from atoll.train.exchanged import let_gpu_reach
from atoll.train.loss import CHUNK_LOGITS, OfChunk, by_operations, language_model_loss
from atoll.train.shared import SharedVectors

KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
COPIED_VALUES = 2**27


def main() -> None:
    arguments = parse()
    device = pick_device("auto")
    if device.type != "cuda":
        raise SystemExit("gpu_parts.py needs a CUDA device, and there is none")
    show({"question": "device", "device": device_name(device), "torch": str(torch.__version__)})
    has_failed = False
    questions = [
        *(attention(PRESETS[name], device, arguments, name=name) for name in ("1b", "8b")),
        losses(PRESETS["1b"], device, arguments),
        copies(device, arguments),
    ]
    for lines in questions:
        try:
            for line in lines:
                show(line)
        except RuntimeError as error:  # the next question
            has_failed = True
            show({"question": "failed", "reason": str(error)[:500]})
    sys.exit(int(has_failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequence-length", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=20)
    return parser.parse_args()


def show(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def seconds_of(act: Callable[[], object], repeats: int) -> float:
    """Return what it takes, the device included: the median, after two that warm up."""
    seconds = []
    for _ in range(2 + repeats):
        torch.cuda.synchronize()
        began_at = monotonic_s()
        act()
        torch.cuda.synchronize()
        seconds.append(monotonic_s() - began_at)
    return median(seconds[2:])


# --- attention ------------------------------------------------------------------------------------


def attention(
    model: ModelConfig, device: torch.device, arguments: argparse.Namespace, *, name: str
) -> Iterator[dict[str, Any]]:
    length, heads, width = arguments.sequence_length, model.num_heads, model.head_width
    # Twice as many operations backward as forward, and the scores once more; half is masked.
    flops = 3.5 * 2 * length**2 * heads * width
    for kernel in KERNELS:
        inputs = queries_keys_values(model, length, device)
        out_BHTE = attend(*inputs, kernel=kernel)
        grad_BHTE = torch.randn_like(out_BHTE)

        def both(
            inputs: list[Tensor] = inputs, grad_BHTE: Tensor = grad_BHTE, kernel: str = kernel
        ) -> None:
            torch.autograd.grad(attend(*inputs, kernel=kernel), inputs, grad_BHTE)

        seconds = seconds_of(both, arguments.repeats)
        yield {
            "question": "attention",
            "model": name,
            "kernel": kernel,
            "ms": round(seconds * 1e3, 3),
            "tflops_per_s": round(flops / seconds / 1e12, 1),
            "errors": errors(model, device, kernel=kernel),
        }


def queries_keys_values(model: ModelConfig, length: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    return [
        torch.randn(
            (1, length, count, model.head_width),
            generator=generator,
            device=device,
            dtype=torch.bfloat16,
        )
        .transpose(1, 2)
        .requires_grad_()
        for count in heads
    ]


def attend(q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, *, kernel: str) -> Tensor:
    with sdpa_kernel(KERNELS[kernel]):
        return F.scaled_dot_product_attention(
            q_BHTE, k_BGTE, v_BGTE, is_causal=True, enable_gqa=True
        )


def errors(model: ModelConfig, device: torch.device, *, kernel: str) -> list[float]:
    """Return how far the result and its three gradients are from those in fp64, relative (L2)."""
    inputs = queries_keys_values(model, 512, device)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    each = model.num_heads // model.num_kv_heads
    found_BHTE = attend(*inputs, kernel=kernel)
    q_BHTE, *others = exact
    with sdpa_kernel(SDPBackend.MATH):
        k_BHTE, v_BHTE = (x.repeat_interleave(each, dim=1) for x in others)
        exact_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
    grad_BHTE = torch.randn_like(found_BHTE)
    found = [found_BHTE, *torch.autograd.grad(found_BHTE, inputs, grad_BHTE)]
    wanted = [exact_BHTE, *torch.autograd.grad(exact_BHTE, exact, grad_BHTE.double())]
    return [
        round(float((one.double() - other).norm() / other.norm()), 5)
        for one, other in zip(found, wanted, strict=True)
    ]


# --- the loss -------------------------------------------------------------------------------------


def losses(
    model: ModelConfig, device: torch.device, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    num_tokens = arguments.sequence_length
    hidden_BTD = torch.randn(1, num_tokens, model.width, device=device, requires_grad=True)
    head_VD = torch.randn(model.vocab_size, model.width, device=device) * 0.02
    head_VD.requires_grad_()
    targets_BT = torch.randint(0, model.vocab_size, (1, num_tokens), device=device)
    flops = 6.0 * num_tokens * head_VD.numel()
    peak = peak_by_name(device_name(device))
    usual = CHUNK_LOGITS["cuda"]
    ways: tuple[tuple[str, OfChunk], ...] = (
        ("operations", by_operations),
        ("compiled", loss_of_chunk("inductor")),
    )
    for name, of_chunk in ways:
        for chunk_logits in (usual, 2 * usual, 4 * usual):
            CHUNK_LOGITS["cuda"] = chunk_logits

            def both(of_chunk: OfChunk = of_chunk) -> None:
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    objective, _ = language_model_loss(
                        hidden_BTD,
                        head_VD,
                        targets_BT,
                        num_targets=num_tokens,
                        z_loss=2e-4,
                        of_chunk=of_chunk,
                    )
                torch.autograd.grad(objective, (hidden_BTD, head_VD))

            both()
            torch.cuda.reset_peak_memory_stats()
            seconds = seconds_of(both, arguments.repeats)
            yield {
                "question": "loss",
                "how": name,
                "chunk_logits": chunk_logits,
                "ms": round(seconds * 1e3, 2),
                "ms_of_products_at_peak": peak and round(flops / peak * 1e3, 2),
                "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            }
    CHUNK_LOGITS["cuda"] = usual


# --- copies ---------------------------------------------------------------------------------------


def copies(device: torch.device, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        vectors = SharedVectors.for_peer(Path(folder), COPIED_VALUES)
        try:
            vectors.snapshot_N[:] = vectors.global_N[:] = np.float32(1)
            yield copied(vectors, device, arguments.repeats)
            began_at = monotonic_s()
            let_go = let_gpu_reach(vectors, device)
            pin_s = monotonic_s() - began_at
            found = copied(vectors, device, arguments.repeats)
            both_gb = 2 * FP32_BYTES * COPIED_VALUES / 1e9
            yield found | {"pin_s_per_gb": round(pin_s / both_gb, 3)}
            said = said_of_pinning(vectors, device)
            let_go()
            is_pinned = torch.from_numpy(vectors.snapshot_N).is_pinned()
            yield {"question": "pinned twice, let go once", "said": said, "is_pinned": is_pinned}
        finally:
            vectors.unlink()


def copied(vectors: SharedVectors, device: torch.device, repeats: int) -> dict[str, Any]:
    host_N = torch.from_numpy(vectors.snapshot_N)
    device_N = host_N.to(device)
    num_gb = FP32_BYTES * COPIED_VALUES / 1e9
    to_device_s = seconds_of(lambda: device_N.copy_(host_N, non_blocking=True), repeats)
    to_host_s = seconds_of(lambda: host_N.copy_(device_N, non_blocking=True), repeats)
    return {
        "question": "copies",
        "is_pinned": host_N.is_pinned(),
        "to_device_gb_per_s": round(num_gb / to_device_s, 1),
        "to_host_gb_per_s": round(num_gb / to_host_s, 1),
    }


def said_of_pinning(vectors: SharedVectors, device: torch.device) -> str:
    """Pin what is pinned, which CUDA refuses; return what is said, if work then goes on."""
    said = StringIO()
    with redirect_stderr(said):
        let_gpu_reach(vectors, device)
    torch.ones(1, device=device).add_(1)  # fails, if the refusal is still to be reported
    return said.getvalue().strip()


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(str(error))
