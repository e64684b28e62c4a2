"""What a step of training spends its time on, by torch's profiler.

Each kernel counts for the operation that launched it (on a CPU: that ran it), and each operation
for one of a few purposes, by its name.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch._C._autograd import DeviceType

from atoll.clock import monotonic_s

# The first that has one of its words in the name of an operation has it.
PURPOSES: Final = {
    "attention": (
        *("scaled_dot_product", "flash_attention", "flex_attention", "efficient_attention"),
        *("atoll::attend", "baddbmm", "_softmax"),  # on a CPU, and what it is made of
    ),
    "products": ("::mm", "::addmm", "::bmm", "_scaled_mm", "::matmul", "mkldnn_linear"),
    "optimizer": ("adam", "foreach", "_foreach"),
    "between ranks": ("nccl", "gloo", "all_gather", "reduce_scatter", "c10d"),
    "copies": ("Memcpy", "Memset", "::copy_", "::_to_copy"),
}


def purpose_of(operation: str) -> str:
    """Return what an operation is for; `other`: norms, activations, the loss, compiled or not."""
    name = operation.lower()
    return next(
        (
            purpose
            for purpose, words in PURPOSES.items()
            if any(word.lower() in name for word in words)
        ),
        "other",
    )


def breakdown(step: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return the shares of a step's seconds by purpose, and `idle`: when the device did nothing.

    The step ends when the device is done with it. What the profiler itself takes is in `idle`.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        began_at = monotonic_s()
        step()
        seconds = monotonic_s() - began_at
    shares = dict.fromkeys((*PURPOSES, "other"), 0.0)
    for event in profile.key_averages():
        # Kernels are events of their own, too: each would count twice.
        if event.device_type == DeviceType.CPU:
            spent_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            shares[purpose_of(event.key)] += spent_us / 1e6 / seconds
    shares["idle"] = max(0.0, 1.0 - sum(shares.values()))
    return {purpose: round(share, 3) for purpose, share in shares.items()}
