"""The device that trains, and what it can do."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import torch

from atoll.config import PeerConfig
from atoll.errors import ConfigError
from atoll.system import keep_freed_memory
from atoll.units import GIB

Precision: TypeAlias = Literal["fp32", "bf16", "fp8"]
"""Of matrix products. With fp8, of the large ones in the layers; the others are in bf16."""

WIDTH_FOR_BF16: Final = 256  # on a CPU: of two models measured, 384 wide gains 1.6, 128 nothing


def pick_device(name: str) -> torch.device:
    """Return the device of this name: cuda, mps, cpu, or, for auto, the first of them that is here.

    Raises:
        ConfigError: it is not here.
    """
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_here in here.items() if is_here)
    if not here.get(name, False):
        raise ConfigError(
            f"no such device on this machine: {name}",
            hint=f"choose one of: auto, {', '.join(d for d, is_here in here.items() if is_here)}",
        )
    # With its number, which some of torch's functions ask for.
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def pick_devices(peer: PeerConfig) -> list[torch.device]:
    """Return the device of each rank of a peer.

    Raises:
        ConfigError: this machine has not so many.
    """
    device = pick_device(peer.device)
    num_here = torch.cuda.device_count() if device.type == "cuda" else 1
    num_ranks = peer.devices or num_here
    if device.type == "cpu":
        return [device] * num_ranks
    if num_ranks > num_here:
        raise ConfigError(
            f"no {num_ranks} devices of this kind on this machine: {device_name(device)}",
            hint=f"it has {num_here}",
        )
    return [device] if num_ranks == 1 else [torch.device("cuda", rank) for rank in range(num_ranks)]


def prepare_process(device: torch.device, *, num_threads: int = 0, num_ranks: int = 1) -> int:
    """Make this a process that trains on the device, before anything is on it.

    Returns how many threads torch uses from now on (see `set_threads`).
    """
    if device.type == "cuda":
        # All that names no GPU means this one: FSDP2 puts a rank's rows there, and so go small
        # tensors that ranks exchange. On all ranks it would be the first GPU.
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    return set_threads(num_threads, num_ranks=num_ranks)


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"mps": "Apple GPU", "cpu": "CPU"}[device.type]


def name_of(devices: Sequence[torch.device]) -> str:
    """Return what a person calls all devices of a peer."""
    counts = Counter(device_name(device) for device in devices)
    return " and ".join(n if count == 1 else f"{count} x {n}" for n, count in counts.items())


def limit_memory(device: torch.device, limit: str) -> int | None:
    """Let this process take no more of the device than its owner gives: "50%", "8 GB", "8 GiB".

    Returns the bytes; None: there is no limit.

    Raises:
        ConfigError: the limit is none, or the device is a CPU, whose memory torch does not limit.
    """
    if not limit:
        return None
    if device.type == "cpu":
        raise ConfigError(
            "--gpu-memory is for a GPU, and this peer trains on the CPU",
            hint="there a smaller --micro-batch takes less",
        )
    if device.type == "cuda":
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        limit_bytes = part_of(limit, total_bytes)
        torch.cuda.set_per_process_memory_fraction(limit_bytes / total_bytes, device)
    else:
        total_bytes = torch.mps.recommended_max_memory()
        limit_bytes = part_of(limit, total_bytes)
        torch.mps.set_per_process_memory_fraction(limit_bytes / total_bytes)
    return limit_bytes


def part_of(limit: str, total_bytes: int) -> int:
    """Return how many bytes of a memory "50%" or "8 GB" are; all of it at most.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|GB|GiB)\s*", limit, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        hint = "a share of the GPU's memory or a size, for example 50% or 8GB"
        raise ConfigError(f"--gpu-memory {limit} means nothing", hint=hint)
    unit_bytes = {"%": total_bytes / 100, "gb": 1e9, "gib": float(GIB)}[found[2].lower()]
    return min(total_bytes, int(float(found[1]) * unit_bytes))


def computes_in_bf16(device: torch.device, *, width: int) -> bool:
    """Return whether matrix products of a model this wide shall be in bf16; else they are in fp32.

    On a CPU, where it has instructions for them, and products are large enough to pay for the casts
    (docs/experiments.md); one without is slower with bf16.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        has = any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
        return has and width >= WIDTH_FOR_BF16
    return device.type == "mps"


def set_threads(num_threads: int, *, num_ranks: int = 1) -> int:
    """Let torch use this many threads (0: as many as it takes by itself); return how many it uses.

    Several ranks share them out. The last bits of a sum depend on the number, so it stays the same
    while a process lives.
    """
    if num_ranks > 1:
        num_threads = max(1, (num_threads or torch.get_num_threads()) // num_ranks)
    if num_threads > 0:
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()
