"""What a device can do at most: the yardstick of utilisation (MFU).

By the makers' data sheets where the device is known; elsewhere, the fastest of some plain matrix
products. These reach 60 to 90 % of a data sheet's figure, so that an MFU by them looks better.
With a cache, the fastest of all measurements there counts (`model/peaks.py`).
"""

import platform
from pathlib import Path
from typing import Final, NamedTuple

import torch

from atoll.clock import monotonic_s
from atoll.model.devices import peak_by_name
from atoll.model.peaks import MeasuredPeak, remember
from atoll.train.device import device_name

MEASURE_S: Final = 0.3
SIDE: Final = {"cpu": 1024, "mps": 2048, "cuda": 8192}  # of the matrices: more is no faster


class Peak(NamedTuple):
    flops: float  # per second
    measured: bool  # rather than by a data sheet


def peak_of(device: torch.device, *, bf16: bool, cache: Path | None = None) -> Peak:
    """Return what the device does at most in products of this kind; to measure takes a moment.

    Raises:
        RunError: the disk of the cache does not take what was measured.
    """
    name = device_name(device)
    known = peak_by_name(name)
    if bf16 and known is not None:
        return Peak(known, measured=False)
    flops = measured_peak(device, bf16=bf16)
    if cache is not None:
        found = MeasuredPeak(
            machine=platform.node(),
            device=name,
            threads=torch.get_num_threads() if device.type == "cpu" else 0,
            torch=str(torch.__version__),
            bf16=bf16,
            flops=flops,
        )
        flops = remember(found, cache=cache).flops
    return Peak(flops, measured=True)


def measured_peak(device: torch.device, *, bf16: bool) -> float:
    """Return the operations per second of the fastest of the products within `MEASURE_S`."""
    side = SIDE[device.type]
    a_NN = torch.ones(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    last = a_NN @ a_NN  # prepares what the others use
    fastest_s, began_at = float("inf"), monotonic_s()
    while fastest_s == float("inf") or monotonic_s() - began_at < MEASURE_S:
        _wait_for(last)
        product_at = monotonic_s()
        last = a_NN @ a_NN
        _wait_for(last)
        fastest_s = min(fastest_s, monotonic_s() - product_at)
    return 2.0 * side**3 / fastest_s


def _wait_for(product_NN: torch.Tensor) -> None:
    product_NN[0, 0].item()
