import pytest
import torch

from atoll.config import PeerConfig
from atoll.errors import ConfigError
from atoll.train.device import (
    computes_in_bf16,
    device_name,
    limit_memory,
    name_of,
    part_of,
    pick_device,
    pick_devices,
    set_threads,
)
from atoll.units import GIB

CPU = torch.device("cpu")


def test_the_cpu_is_always_there():
    assert pick_device("cpu") == CPU
    assert device_name(CPU) == "CPU"


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": False}, {"amx_bf16": True}], ids=str)
def test_a_cpu_computes_wide_models_in_bf16_if_it_has_instructions_for_it(able, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    found = [computes_in_bf16(CPU, width=width) for width in (128, 384)]
    assert found == [False, any(able.values())]


def test_auto_prefers_an_accelerator():
    accelerator = "cuda" if torch.cuda.is_available() else "mps"
    here = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert pick_device("auto").type == (accelerator if here else "cpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_a_config_error():
    with pytest.raises(ConfigError, match="no such device on this machine: mps") as caught:
        pick_device("mps")
    assert caught.value.hint.startswith("choose one of: auto, ")
    assert "mps" not in caught.value.hint


def test_a_cpu_is_one_device_unless_told_otherwise():
    one, three = (pick_devices(PeerConfig(device="cpu", devices=n)) for n in (0, 3))
    assert (one, three) == ([CPU], [CPU] * 3)
    assert (name_of(one), name_of(three)) == ("CPU", "3 x CPU")


def test_devices_that_are_not_alike_are_named_each(monkeypatch):
    names = ["RTX 4090", "RTX 3090", "RTX 4090"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    devices = [torch.device("cuda", number) for number in range(3)]
    assert name_of(devices) == "2 x RTX 4090 and RTX 3090"
    assert name_of(devices[:1]) == "RTX 4090"


def test_every_gpu_is_named_by_its_number(monkeypatch):
    """Some of torch's functions refuse one that is not, and take the current one for others."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda", 0)
    for num, expected in ((0, [0, 1]), (1, [0]), (2, [0, 1])):
        found = pick_devices(PeerConfig(device="cuda", devices=num))
        assert [device.index for device in found] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_all_gpus_are_taken_and_no_more():
    here = torch.cuda.device_count()
    assert len(pick_devices(PeerConfig(device="cuda"))) == here
    with pytest.raises(ConfigError, match=f"no {here + 1} devices"):
        pick_devices(PeerConfig(device="cuda", devices=here + 1))


def test_threads():
    before = torch.get_num_threads()
    assert set_threads(2) == 2
    assert set_threads(0) == 2
    assert set_threads(4, num_ranks=2) == 2
    assert set_threads(2, num_ranks=3) == 1
    assert set_threads(before) == before


@pytest.mark.parametrize(
    ("limit", "num_bytes"),
    [("50%", 12 * GIB), ("8GB", 8 * 10**9), (" 8 gib", 8 * GIB), ("2.5 GB", 25 * 10**8)],
)
def test_a_part_of_a_gpu(limit, num_bytes):
    assert part_of(limit, 24 * GIB) == num_bytes


@pytest.mark.parametrize("limit", ["200%", "1000GB"])
def test_nobody_gives_more_than_there_is(limit):
    assert part_of(limit, 24 * GIB) == 24 * GIB


@pytest.mark.parametrize("limit", ["8", "0%", "-8GB", "half", "8 MB"])
def test_what_is_no_part_is_a_config_error(limit):
    with pytest.raises(ConfigError, match="means nothing"):
        part_of(limit, 24 * GIB)


def test_the_memory_of_a_cpu_has_no_limit():
    assert limit_memory(torch.device("cpu"), "") is None
    with pytest.raises(ConfigError, match="trains on the CPU"):
        limit_memory(torch.device("cpu"), "50%")
