import platform

from msgspec.structs import replace

from atoll.model.peaks import FILE, MeasuredPeak, own_peak_flops, read_peaks, remember

SLOW = MeasuredPeak(
    machine=platform.node(), device="CPU", threads=2, torch="2.13.0", bf16=True, flops=3e11
)
FAST = replace(SLOW, flops=4e11)
ELSEWHERE = replace(SLOW, machine="another machine", flops=9e14)


def test_the_fastest_measurement_of_a_kind_is_kept_beside_those_of_other_kinds(tmp_path):
    cache = tmp_path / "not there yet"
    assert remember(SLOW, cache=cache) == SLOW
    assert remember(FAST, cache=cache) == FAST
    assert remember(SLOW, cache=cache) == FAST
    for other in (
        replace(SLOW, bf16=False),
        replace(SLOW, threads=1),
        replace(SLOW, torch="2.14.0"),
        replace(SLOW, device="Apple GPU"),
        ELSEWHERE,
    ):
        assert remember(other, cache=cache) == other
    assert FAST in read_peaks(cache)
    assert len(read_peaks(cache)) == 6


def test_our_own_peak_is_not_that_of_a_machine_that_shares_the_cache(tmp_path):
    assert own_peak_flops(tmp_path) == 0
    remember(ELSEWHERE, cache=tmp_path)
    assert own_peak_flops(tmp_path) == 0
    remember(SLOW, cache=tmp_path)
    assert own_peak_flops(tmp_path) == SLOW.flops


def test_a_file_that_cannot_be_read_counts_as_nothing(tmp_path):
    (tmp_path / FILE).write_text("[{")
    assert read_peaks(tmp_path) == []
    assert remember(SLOW, cache=tmp_path) == SLOW
