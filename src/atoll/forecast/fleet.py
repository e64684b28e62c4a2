"""A fleet: the machines that a run is planned for, and their lines, as a person writes them down.

fleet.toml --load_fleet--> FleetConfig: groups of equal peers, and the host
"""

from collections import Counter
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, structs

from atoll import tables
from atoll.config import NotNegative, NotNegativeFloat, Positive, PositiveFloat
from atoll.errors import ConfigError
from atoll.model.devices import DEVICES, Device, DeviceName
from atoll.tables import about
from atoll.units import GIB

# Of a device that the file describes, whoever wrote it knows what it has.
OWN: Final = Device(0.0, None, computes_in_fp8=True)
_HINTS = {
    "peak_tflops": "`atoll doctor` measures it on this machine, and remembers it",
    "precision": "these have: "
    + ", ".join(name for name, device in DEVICES.items() if device.computes_in_fp8),
}
LARGEST_FLEET = 100_000  # peers; for more the arithmetic would take minutes


class GroupConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peers of one kind."""

    name: Annotated[str, Meta(min_length=1), about("of the group, in the tables")]
    count: Annotated[Positive, about("peers")] = 1
    place: Annotated[str, about("where they are; groups of one place are near each other")] = ""
    device: Annotated[DeviceName, about("what trains; own: as the next two keys say")]
    peak_tflops: Annotated[
        NotNegativeFloat,
        about("of one device; 0: as in the table; own: as measured by atoll doctor"),
    ] = 0.0
    device_gib: Annotated[NotNegativeFloat, about("memory of one; 0: as in the table")] = 0.0
    devices: Annotated[Positive, about("in one machine, which share one model")] = 1
    machines: Annotated[Positive, about("in one peer, with a copy of the model each")] = 1
    mfu: Annotated[
        float, Meta(gt=0, le=1), about("part of the peak that training reaches: an assumption")
    ] = 0.4
    precision: Annotated[
        Literal["auto", "fp8"], about("as in a peer's file; auto: what the device is made for")
    ] = "auto"
    recomputes: Annotated[bool, about("keeps no activations within layers")] = False
    micro_batch: Annotated[NotNegative, about("samples at once on a device; 0: as many as fit")] = 0
    memory_gib: Annotated[PositiveFloat, about("memory of the machine, besides the devices' own")]
    disk_mb_per_s: Annotated[PositiveFloat, about("that its disk writes")] = 500.0
    up_mbps: Annotated[PositiveFloat, about("that its line carries up, in Mb/s, with all headers")]
    down_mbps: Annotated[PositiveFloat, about("and down")]
    rtt_ms: Annotated[NotNegativeFloat, about("round trip to the others")] = 50.0
    reachable: Annotated[bool, about("others can dial it, so it can reduce")] = False

    @property
    def hardware(self) -> Device:
        """What one of its devices can do: the table's, but for what the group says itself."""
        known = DEVICES.get(self.device, OWN)
        memory = round(self.device_gib * GIB) if self.device_gib else known.memory_bytes
        peak_flops = self.peak_tflops * 1e12 or known.peak_flops
        return known._replace(peak_flops=peak_flops, memory_bytes=memory)

    @property
    def flops(self) -> float:
        """Floating-point operations per second that a peer trains with."""
        return self.hardware.peak_flops * self.devices * self.machines * self.mfu


class HostConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine of the host; its built-in member fetches every update, and may have to reduce."""

    up_mbps: Annotated[PositiveFloat, about("that its line carries up, in Mb/s, with all headers")]
    down_mbps: Annotated[PositiveFloat, about("and down")]
    rtt_ms: Annotated[NotNegativeFloat, about("round trip to the peers")] = 50.0
    memory_gib: Annotated[PositiveFloat, about("of that machine")] = 16.0


class FleetConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machines that a run is planned for."""

    host: HostConfig = HostConfig(up_mbps=1000.0, down_mbps=1000.0)
    groups: Annotated[tuple[GroupConfig, ...], Meta(min_length=1)]

    @property
    def num_peers(self) -> int:
        return sum(group.count for group in self.groups)


def load_fleet(path: Path, *, own_peak_flops: float = 0.0) -> FleetConfig:
    """Return the fleet that a TOML file describes.

    Groups with device = "own" that do not say their peak have what was measured here; 0: nothing.

    Raises:
        ConfigError: there is no such file, it is no TOML, or it describes no fleet. The message
            names file and key.
    """
    hint = "check the path; `atoll plan --example` prints a fleet.toml to start from"
    with tables.errors_of(path):
        fleet = tables.convert(tables.read(path, hint=hint), FleetConfig)
        groups = tuple(_with_peak(group, own_peak_flops) for group in fleet.groups)
        fleet = structs.replace(fleet, groups=groups)
        check(fleet)
    return fleet


def _with_peak(group: GroupConfig, own_peak_flops: float) -> GroupConfig:
    if group.device != "own" or group.peak_tflops:
        return group
    return structs.replace(group, peak_tflops=own_peak_flops / 1e12)


def check(fleet: FleetConfig) -> None:
    """Raise ConfigError for the first combination of values that describes no fleet."""
    for key, problem in _impossible(fleet):
        raise ConfigError(f"{key}: {problem}", hint=_HINTS.get(key.rpartition(".")[2], ""))


def _impossible(fleet: FleetConfig) -> Iterator[tuple[str, str]]:
    names = Counter(group.name for group in fleet.groups)
    for index, group in enumerate(fleet.groups):
        key = f"groups[{index}]"
        if names[group.name] > 1:
            yield f"{key}.name", f"{group.name!r} is the name of another group, too"
        if group.device == "own" and not group.peak_tflops:
            yield f"{key}.peak_tflops", 'missing, with device = "own"'
        if group.precision == "fp8" and not group.hardware.computes_in_fp8:
            yield f"{key}.precision", f"no products in 8 bits on this device: {group.device}"
    if fleet.num_peers > LARGEST_FLEET:
        yield "groups", f"{fleet.num_peers} peers, of {LARGEST_FLEET} at most"


def example() -> FleetConfig:
    """Return a fleet of three kinds of peers, to start from."""
    return FleetConfig(
        host=HostConfig(up_mbps=500.0, down_mbps=500.0, rtt_ms=30.0),
        groups=(
            GroupConfig(
                name="lab",
                count=2,
                place="a university",
                device="A100-80",
                memory_gib=256.0,
                up_mbps=1000.0,
                down_mbps=1000.0,
                rtt_ms=20.0,
                reachable=True,
            ),
            GroupConfig(
                name="gamers",
                count=8,
                place="homes",
                device="RTX 4090",
                memory_gib=64.0,
                up_mbps=40.0,
                down_mbps=250.0,
            ),
            GroupConfig(
                name="laptops",
                count=2,
                place="homes",
                device="M3 Max",
                mfu=0.3,
                memory_gib=64.0,
                up_mbps=15.0,
                down_mbps=110.0,
            ),
        ),
    )


def micro_batch_of(group: GroupConfig, batch_sequences: int) -> int:
    """Return the most samples at once that make sense on one device of a peer of this group."""
    return group.micro_batch or ceil(batch_sequences / (group.devices * group.machines))
