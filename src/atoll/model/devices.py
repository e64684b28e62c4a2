"""What devices can do by their makers' data sheets: floating-point operations and memory.

Peaks are those of dense matrix products in bf16 with sums in fp32 (fp32 on a CPU): what training
asks for. What it reaches of them is its model FLOPS utilisation (MFU).
"""

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


DEVICES: Final[dict[DeviceName, Device]] = {
    "H200": Device(989e12, 141 * 10**9),  # SXM
    "H100": Device(989e12, 80 * GIB),  # SXM
    "A100-80": Device(312e12, 80 * GIB),
    "A100-40": Device(312e12, 40 * GIB),
    "L40S": Device(362e12, 48 * GIB),
    "RTX 5090": Device(209e12, 32 * GIB),
    "RTX 4090": Device(165e12, 24 * GIB),
    "RTX 3090": Device(71e12, 24 * GIB),
    "M3 Max": Device(28e12, None),  # 40 cores: 14.2 Tflop/s in fp32, twice that in half precision
    "laptop CPU": Device(0.9e12, None, computes_in_bf16=False),  # 8 cores, 32 flop a cycle, 3.5 GHz
}

assert {*DEVICES, "own"} == set(get_args(DeviceName)), "each name is in the table"
