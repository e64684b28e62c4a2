"""Small runs and fleets to forecast."""

from typing import Any

from msgspec import structs

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
)
from atoll.forecast.fleet import FleetConfig, GroupConfig, HostConfig
from atoll.model.presets import PRESETS

FAST_HOST = HostConfig(up_mbps=100_000.0, down_mbps=100_000.0, memory_gib=1000.0)


def run_of(*, model: ModelConfig = PRESETS["small"], batch: int = 16, **sync: Any) -> RunConfig:
    settings = {"rounds": 100, "inner_steps": 40} | sync
    return RunConfig(
        name="a-run",
        model=model,
        data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),), sequence_length=512),
        inner=InnerConfig(lr=1e-3, batch_sequences=batch),
        sync=SyncConfig(**settings),
    )


def group_of(name: str = "homes", **changes: Any) -> GroupConfig:
    """Return peers with equal lines of 100 Mb/s and no delay, whom others can dial."""
    plain = GroupConfig(
        name=name,
        count=4,
        device="own",
        peak_tflops=10.0,
        device_gib=24.0,
        memory_gib=64.0,
        disk_mb_per_s=1e6,
        up_mbps=100.0,
        down_mbps=100.0,
        rtt_ms=0.0,
        reachable=True,
    )
    return structs.replace(plain, **changes)


def fleet_of(*groups: GroupConfig, host: HostConfig = FAST_HOST) -> FleetConfig:
    return FleetConfig(host=host, groups=groups)
