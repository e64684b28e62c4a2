"""What devices can do by their makers' data sheets: floating-point operations and memory.

Peaks are those of dense matrix products in bf16 with sums in fp32 (fp32 on a CPU): what training
asks for. What it reaches of them is its model FLOPS utilisation (MFU).
"""

import re
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from atoll.units import GIB

DeviceName: TypeAlias = Literal[
    "H200",
    "H100",
    "A100-80",
    "A100-40",
    "L40S",
    "RTX 5090",
    "RTX 4090",
    "RTX 3090",
    "M3 Max",
    "laptop CPU",
    "own",
]


class Device(NamedTuple):
    """`memory_bytes` is None where the device uses the memory of its machine."""

    peak_flops: float  # per second
    memory_bytes: int | None
    computes_in_bf16: bool = True
    computes_in_fp8: bool = False


DEVICES: Final[dict[DeviceName, Device]] = {
    "H200": Device(989e12, 141 * 10**9, computes_in_fp8=True),  # SXM
    "H100": Device(989e12, 80 * GIB, computes_in_fp8=True),  # SXM
    "A100-80": Device(312e12, 80 * GIB),
    "A100-40": Device(312e12, 40 * GIB),
    "L40S": Device(362e12, 48 * GIB, computes_in_fp8=True),
    "RTX 5090": Device(209e12, 32 * GIB, computes_in_fp8=True),
    "RTX 4090": Device(165e12, 24 * GIB, computes_in_fp8=True),
    "RTX 3090": Device(71e12, 24 * GIB),
    "M3 Max": Device(28e12, None),  # 40 cores: 14.2 Tflop/s in fp32, twice that in half precision
    "laptop CPU": Device(0.9e12, None, computes_in_bf16=False),  # 8 cores, 32 flop a cycle, 3.5 GHz
}

assert {*DEVICES, "own"} == set(get_args(DeviceName)), "each name is in the table"

# By the first words that are in the name that a device's driver gives it. DEVICES, which runs are
# planned with, has no PCIe card; its figure is from NVIDIA's data sheet.
SHEETS: Final = {
    "H200": DEVICES["H200"].peak_flops,
    "H100 PCIe": 756e12,
    "H100": DEVICES["H100"].peak_flops,
    "A100": DEVICES["A100-80"].peak_flops,
    "L40S": DEVICES["L40S"].peak_flops,
    "RTX 5090": DEVICES["RTX 5090"].peak_flops,
    "RTX 4090": DEVICES["RTX 4090"].peak_flops,
    "RTX 3090": DEVICES["RTX 3090"].peak_flops,
}


def peak_by_name(name: str) -> float | None:
    """Return the peak of a device by its name, per second; None: it is in no table."""
    return next((flops for words, flops in SHEETS.items() if words in name), None)


def peak_of_peer(device: str) -> float | None:
    """Return that of all devices of a peer, by what it says: "2 machines with 8 x NVIDIA H100"."""
    found = re.fullmatch(r"(?:(\d+) machines with )?(?:(\d+) x )?(.*)", device)
    assert found is not None, "anything is a name"
    each = peak_by_name(found[3])
    return None if each is None else int(found[1] or 1) * int(found[2] or 1) * each
