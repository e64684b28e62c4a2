"""The device that trains, and what it can do."""

import torch

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


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"mps": "Apple GPU", "cpu": "CPU"}[device.type]


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether matrix products on the device shall be in bf16; elsewhere they are in fp32.

    Not on a CPU: most have no instructions for it, and are slower with it than without.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "mps"


def set_threads(num_threads: int) -> int:
    """Let torch use this many threads (0: as many as it takes by itself); return how many it uses.

    The last bits of a sum depend on the number, so it stays the same while a process lives.
    """
    if num_threads > 0:
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()
