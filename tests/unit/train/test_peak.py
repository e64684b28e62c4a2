import torch
from msgspec.structs import replace

from atoll.model.peaks import read_peaks, remember
from atoll.train import peak
from atoll.train.peak import Peak, measured_peak, peak_at_start, peak_of

CPU = torch.device("cpu")


def test_an_unknown_device_is_measured(monkeypatch):
    """The clock says how long each product took: 2 s, 1 s, and no time is left."""
    now_s = iter([0.0, 1.0, 3.0, 3.0, 4.0, 5.0, 10.0])
    monkeypatch.setattr(peak, "monotonic_s", lambda: next(now_s))
    monkeypatch.setattr(peak, "MEASURE_S", 4.0)
    monkeypatch.setitem(peak.SIDE, "cpu", 16)
    assert peak_of(CPU, bf16=False) == Peak(2 * 16**3 / 1.0, measured=True)


def test_a_product_is_a_product(monkeypatch):
    monkeypatch.setitem(peak.SIDE, "cpu", 64)
    assert measured_peak(CPU, bf16=True, seconds=0.0) > 0


def test_a_known_device_is_not(monkeypatch):
    monkeypatch.setattr(peak, "device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak_of(CPU, bf16=True) == Peak(756e12, measured=False)
    monkeypatch.setattr(peak, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_of(CPU, bf16=True) == Peak(989e12, measured=False)
    assert peak_at_start(CPU, bf16=True, cache=None) == 989e12


def test_a_trainer_takes_what_was_measured_here_before_and_else_looks_itself(monkeypatch, tmp_path):
    monkeypatch.setitem(peak.SIDE, "cpu", 64)
    assert peak_at_start(CPU, bf16=False, cache=tmp_path) > 0
    assert read_peaks(tmp_path) == [], "others may be at work beside it"
    careful = peak_of(CPU, bf16=False, cache=tmp_path)
    assert peak_at_start(CPU, bf16=False, cache=tmp_path) == careful.flops
    ours = read_peaks(tmp_path)[0]
    for other in (replace(ours, bf16=True), replace(ours, machine="another machine")):
        remember(replace(other, flops=1e20), cache=tmp_path)
    assert peak_at_start(CPU, bf16=False, cache=tmp_path) == careful.flops
