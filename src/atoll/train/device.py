"""The device that trains, and what it can do."""

from collections.abc import Sequence

import torch

from atoll.config import PeerConfig
from atoll.errors import ConfigError


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
    return torch.device(name)


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


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"mps": "Apple GPU", "cpu": "CPU"}[device.type]


def name_of(devices: Sequence[torch.device]) -> str:
    """Return what a person calls all devices of a peer."""
    name = device_name(devices[0])
    return name if len(devices) == 1 else f"{len(devices)} x {name}"


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether matrix products on the device shall be in bf16; elsewhere they are in fp32.

    Not on a CPU: most have no instructions for it, and are slower with it than without.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
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
