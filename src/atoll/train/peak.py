"""What a device can do at most: the yardstick of utilisation (MFU).

By the makers' data sheets where the device is known; elsewhere, the fastest of some plain matrix
products. These reach 60 to 90 % of a data sheet's figure, so that an MFU by them looks better.
With a cache, the fastest of all measurements there counts (`model/peaks.py`).

A trainer that starts takes what it finds in the cache. Where there is nothing, it measures for a
moment, beside whatever else the machine is doing, and leaves remembering to `atoll doctor`.
"""

import platform
from pathlib import Path
from typing import Final, NamedTuple

import torch
from msgspec import structs

from atoll.clock import monotonic_s
from atoll.config import PeerConfig
from atoll.model.devices import peak_by_name
from atoll.model.peaks import MeasuredPeak, fastest_like, remember
from atoll.train.device import device_name

MEASURE_S: Final = 0.3
GLANCE_S: Final = 0.03  # a product or two on a CPU
SIDE: Final = {"cpu": 1024, "mps": 2048, "cuda": 8192}  # of the matrices: more is no faster


class Peak(NamedTuple):
    flops: float  # per second
    measured: bool  # rather than by a data sheet


def peak_of(device: torch.device, *, bf16: bool, cache: Path | None = None) -> Peak:
    """Return what the device does at most in products of this kind; to measure takes a moment.

    Raises:
        RunError: the disk of the cache does not take what was measured.
    """
    if (known := _by_sheet(device, bf16=bf16)) is not None:
        return Peak(known, measured=False)
    flops = measured_peak(device, bf16=bf16, seconds=MEASURE_S)
    if cache is not None:
        found = structs.replace(_kind(device, bf16=bf16), flops=flops)
        flops = remember(found, cache=cache).flops
    return Peak(flops, measured=True)


def peak_at_start(device: torch.device, *, bf16: bool, cache: Path | None) -> float:
    """Return the same per second, for a trainer that starts; nothing is written."""
    if (known := _by_sheet(device, bf16=bf16)) is not None:
        return known
    known = None if cache is None else fastest_like(_kind(device, bf16=bf16), cache=cache)
    if known is not None:
        return known
    flops = measured_peak(device, bf16=bf16, seconds=GLANCE_S)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the matrices are large, and the model is to have the place
    return flops


def cache_of(peer: PeerConfig) -> Path | None:
    """Return where a peer's machine remembers what was measured; None: nowhere."""
    return Path(peer.cache_directory) if peer.cache_directory else None


def _by_sheet(device: torch.device, *, bf16: bool) -> float | None:
    return peak_by_name(device_name(device)) if bf16 else None


def _kind(device: torch.device, *, bf16: bool) -> MeasuredPeak:
    """Return what a measurement here would be called."""
    return MeasuredPeak(
        machine=platform.node(),
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        torch=str(torch.__version__),
        bf16=bf16,
        flops=0.0,
    )


def measured_peak(device: torch.device, *, bf16: bool, seconds: float) -> float:
    """Return the operations per second of the fastest of the products that begin within so long."""
    side = SIDE[device.type]
    a_NN = torch.ones(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    last = a_NN @ a_NN  # prepares what the others use
    fastest_s, began_at = float("inf"), monotonic_s()
    while fastest_s == float("inf") or monotonic_s() - began_at < seconds:
        _wait_for(last)
        product_at = monotonic_s()
        last = a_NN @ a_NN
        _wait_for(last)
        fastest_s = min(fastest_s, monotonic_s() - product_at)
    return 2.0 * side**3 / fastest_s


def _wait_for(product_NN: torch.Tensor) -> None:
    product_NN[0, 0].item()
