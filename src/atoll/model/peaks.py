"""What devices of this machine were measured to do at most, remembered: a file in the cache.

    atoll doctor (train/peak.py)--> peaks.json --> atoll plan, for device = "own"
                                                          --> a trainer, for the peer's MFU

Another machine that shares the directory has entries of its own, and so has another torch. Of
several measurements the fastest counts: what else a machine has to do only makes them slower.
"""

import platform
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from atoll.durable import write_whole

FILE: Final = "peaks.json"


class MeasuredPeak(msgspec.Struct, frozen=True, kw_only=True):
    machine: str
    device: str
    threads: int  # that a CPU computes with
    torch: str
    bf16: bool
    flops: float  # per second


def read_peaks(cache: Path) -> list[MeasuredPeak]:
    """Return what was measured; nothing, if there is no such file, or none that can be read."""
    try:
        return msgspec.json.decode((cache / FILE).read_bytes(), type=list[MeasuredPeak])
    except (OSError, msgspec.MsgspecError):
        return []  # it can be measured anew at any time


def remember(found: MeasuredPeak, *, cache: Path) -> MeasuredPeak:
    """Note a measurement; return the fastest of its kind, which may be an earlier one.

    Raises:
        RunError: the disk does not take it.
    """
    others, best = [], found
    for known in read_peaks(cache):
        if structs.replace(known, flops=found.flops) == found:
            best = max(best, known, key=lambda peak: peak.flops)
        else:
            others.append(known)
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(cache / FILE, msgspec.json.encode([*others, best]))
    return best


def fastest_like(kind: MeasuredPeak, *, cache: Path) -> float | None:
    """Return what was measured of such a device before, per second; None: it never was."""
    known = read_peaks(cache)
    return max((p.flops for p in known if structs.replace(kind, flops=p.flops) == p), default=None)


def own_peak_flops(cache: Path) -> float:
    """Return what the fastest device of this machine does at most, by measurement; 0: unknown."""
    here = platform.node()
    return max((peak.flops for peak in read_peaks(cache) if peak.machine == here), default=0.0)
