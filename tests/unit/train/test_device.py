import pytest
import torch

from atoll.config import PeerConfig
from atoll.errors import ConfigError
from atoll.train.device import (
    computes_in_bf16,
    device_name,
    name_of,
    pick_device,
    pick_devices,
    set_threads,
)

CPU = torch.device("cpu")


def test_the_cpu_is_always_there():
    assert pick_device("cpu") == CPU
    assert device_name(CPU) == "CPU"
    assert not computes_in_bf16(CPU)


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
