"""What hurts is said, with what helps; what does not hurt is not."""

import pytest
from tests.unit.forecast.cast import fleet_of, group_of, run_of

from atoll.forecast.concerns import concerns
from atoll.forecast.fleet import HostConfig
from atoll.forecast.forecast import forecast
from atoll.model.presets import PRESETS

SMALL_HOST = HostConfig(up_mbps=10.0, down_mbps=10.0, memory_gib=1000.0)


def said(config, fleet) -> str:
    return "\n".join(concerns(config, fleet, forecast(config, fleet)))


def test_nothing_hurts_where_the_exchange_hides_behind_equal_peers():
    assert said(run_of(mode="overlap"), fleet_of(group_of())) == ""


@pytest.mark.parametrize(
    ("sync", "fleet", "words"),
    [
        ({"min_peers": 5}, fleet_of(group_of()), "the run never begins: sync.min_peers = 5"),
        ({}, fleet_of(group_of(device_gib=1.0)), "does not fit into a device"),
        (
            {},
            fleet_of(group_of(), group_of("old", device_gib=1.0, count=3)),
            "3 of 7 peers cannot train, for want of memory: all times are as if they could",
        ),
        ({}, fleet_of(group_of(memory_gib=0.5)), "the machine's memory is too small"),
        (
            {},
            fleet_of(group_of(), group_of("slow", peak_tflops=0.5, count=1)),
            "slow: late in each round",
        ),
        (
            {},
            fleet_of(group_of(count=9), group_of("slow", peak_tflops=7.5, count=1)),
            "homes waits for slow",
        ),
        (
            {"mode": "overlap"},
            fleet_of(group_of(up_mbps=1.0)),
            "the exchange takes longer than the steps beside it",
        ),
        ({}, fleet_of(group_of()), 'sync.mode = "overlap" would hide all of it'),
        ({}, fleet_of(group_of(up_mbps=1.0)), 'sync.mode = "overlap" would hide a part of it'),
        ({"inner_steps": 4}, fleet_of(group_of()), "the steps of a round are over in"),
        (
            {},
            fleet_of(group_of(reachable=False), host=SMALL_HOST),
            "the host's built-in member reduces everything",
        ),
        (
            {},
            fleet_of(group_of(reachable=False, count=5000), host=SMALL_HOST),
            "none of the peers can be dialled: whoever reduces has connections with 5000 members",
        ),
        (
            {},
            fleet_of(group_of(reachable=False, count=4950), group_of("few", count=50)),
            "50 of the 5000 peers can be dialled: whoever reduces has connections with 100 "
            "members and more. With 158 peers that have an open port",
        ),
        (
            {},
            fleet_of(group_of(), host=SMALL_HOST),
            "each commit waits until the host's built-in member has all updates",
        ),
        (
            {},
            fleet_of(group_of(up_mbps=10_000.0, down_mbps=10_000.0, peak_tflops=1000.0)),
            "carries more than one agent moves",
        ),
        ({}, fleet_of(group_of(disk_mb_per_s=5.0)), "its disk (5 MB/s) is slower than its line"),
        (
            {"rounds": 2, "inner_steps": 400},
            fleet_of(group_of(), group_of("far", down_mbps=6.0, count=1)),
            "far: a joiner trains after",
        ),
        (
            {"region_size": 0},
            fleet_of(group_of(count=100)),
            "100 peers send to all reducers at once",
        ),
    ],
)
def test_what_hurts_is_said(sync, fleet, words):
    assert words in said(run_of(**sync), fleet)


def test_what_does_not_fit_comes_with_the_least_change_that_would():
    config = run_of(model=PRESETS["8b"], batch=8)
    peer = group_of(device="H100", device_gib=80.0, memory_gib=1000.0)
    assert "it would fit with devices = 2, micro_batch = 1" in said(config, fleet_of(peer))
    smaller = group_of(device="H100", device_gib=24.0, memory_gib=1000.0)
    assert "it would fit with devices = 8, " in said(config, fleet_of(smaller))
    tiny = group_of(device="H100", device_gib=2.0, memory_gib=1000.0)
    assert "choose a smaller model" in said(config, fleet_of(tiny))
