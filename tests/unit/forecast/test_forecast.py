"""The forecast of a whole run: closed forms, and what may never happen when something changes."""

from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from msgspec import structs
from tests.unit.forecast.cast import fleet_of, group_of, run_of

from atoll.config import load_run_config
from atoll.errors import ConfigError
from atoll.exchange.sizes import encoded_slices
from atoll.forecast.concerns import concerns
from atoll.forecast.exchange import ring_rate
from atoll.forecast.fleet import HostConfig, load_fleet, micro_batch_of
from atoll.forecast.forecast import forecast, positions_of, sizes_of, step_s
from atoll.forecast.memory import training_of
from atoll.forecast.timing import GAP_S
from atoll.ids import PeerId
from atoll.model.accounting import flops_per_token
from atoll.model.layout import layout_of
from atoll.model.memory import trainer_bytes
from atoll.model.presets import PRESETS
from atoll.model.shapes import gains_by_fp8, num_parameters, parameter_specs

ROOT = Path(__file__).parents[3]
CODEC_PAIRS = [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int4")]


def test_a_step_takes_its_operations_over_what_the_devices_reach():
    config, group = run_of(batch=16), group_of(peak_tflops=100.0, devices=2, mfu=0.25)
    flops = 16 * 512 * flops_per_token(config.model, sequence_length=512)
    assert step_s(config, group) == pytest.approx(flops / 50e12)


def test_products_in_8_bits_make_a_step_faster_as_was_reported_of_an_8b_model():
    config = run_of(model=PRESETS["8b"], batch=8)
    config = structs.replace(config, data=structs.replace(config.data, sequence_length=8192))
    plain = group_of(device="H100", peak_tflops=0.0, devices=8, device_gib=0.0)
    in_fp8 = structs.replace(plain, precision="fp8")
    faster = step_s(config, plain) / step_s(config, in_fp8)
    assert faster == pytest.approx(1.25, abs=0.01)  # torchao's own, see FP8_SPEED


def test_weights_in_8_bits_leave_no_cast_behind():
    config = run_of(model=PRESETS["1b"])
    plain = group_of(device="RTX 4090", peak_tflops=0.0, device_gib=0.0, micro_batch=1)
    cast, kept = (
        trainer_bytes(config, training_of(structs.replace(plain, precision=precision), 1)).casts
        for precision in ("auto", "fp8")
    )
    large = sum(spec.num_values for spec in parameter_specs(config.model) if gains_by_fp8(spec))
    assert cast - kept == 2 * large > 0


def test_a_model_whose_sizes_products_in_8_bits_do_not_take_is_refused():
    odd = structs.replace(PRESETS["1b"], ffn_width=5464)
    fleet = fleet_of(group_of(name="lab", device="H100", precision="fp8"))
    with pytest.raises(ConfigError, match=r"lab: fp8 takes multiples of 16 .* 5464 x 2048"):
        forecast(run_of(model=odd), fleet)


def test_muon_has_half_as_much_of_the_blocks_to_write_before_a_commit():
    config = run_of()
    by_muon = structs.replace(config, inner=structs.replace(config.inner, optimizer="muon"))
    fleet = fleet_of(group_of(disk_mb_per_s=1.0))
    adam_s, muon_s = (forecast(c, fleet).groups[0].save_s for c in (config, by_muon))
    specs = parameter_specs(config.model)
    num_values, of_blocks = (
        num_parameters(config.model),
        sum(spec.num_values for spec in specs if spec.is_block_matrix),
    )
    assert adam_s == pytest.approx(8 * num_values / 1e6)
    assert muon_s == pytest.approx((8 * num_values - 4 * of_blocks) / 1e6)


def test_a_second_machine_halves_a_step_and_no_device_holds_less():
    config, group = run_of(batch=16), group_of(device="H100", devices=2, micro_batch=1)
    two = structs.replace(group, machines=2)
    assert step_s(config, two) == step_s(config, group) / 2
    assert micro_batch_of(structs.replace(two, micro_batch=0), 16) == 4
    assert trainer_bytes(config, training_of(two, 1)) == trainer_bytes(
        config, training_of(group, 1)
    )


def test_a_blocking_round_of_equal_peers_is_steps_and_exchange():
    config, fleet = run_of(), fleet_of(group_of(count=4))
    seen = forecast(config, fleet)
    (group,) = seen.groups
    num_bytes = sum(encoded_slices(layout_of(config), "int8")[0])
    # Each sends 3/4 to the others, then its quarter of the mean to all three and to the host.
    assert group.up_bytes == pytest.approx((3 / 4 + 4 / 4) * num_bytes, rel=0.02)
    moved_s = group.up_bytes / (100e6 / 8 * 0.9549)
    beside_s = seen.exchange_s - moved_s
    assert GAP_S <= beside_s <= GAP_S + 0.3  # snapshot, outer step, hash, merge of 16 M values
    assert seen.round_s == pytest.approx(group.steps_s + seen.exchange_s)
    assert seen.utilisation == pytest.approx(group.steps_s / seen.round_s)
    assert seen.tokens_per_s == pytest.approx(4 * 40 * 16 * 512 / seen.round_s)
    assert seen.total_s == pytest.approx(100 * seen.round_s)


def test_overlapped_it_takes_the_longer_of_the_two():
    slow, fast = group_of(up_mbps=1.0), group_of(up_mbps=1000.0, down_mbps=1000.0)
    config = run_of(mode="overlap")
    hidden = forecast(config, fleet_of(fast))
    assert hidden.exchange_s < hidden.groups[0].steps_s
    assert hidden.round_s == pytest.approx(hidden.groups[0].steps_s, rel=0.01)
    assert hidden.utilisation > 0.99
    bound = forecast(config, fleet_of(slow))
    assert bound.round_s == pytest.approx(bound.exchange_s)
    assert bound.exchange_s > bound.groups[0].steps_s


def test_fragments_move_their_part_as_often():
    whole, parts = (
        forecast(run_of(fragments=number, mode="overlap"), fleet_of(group_of()))
        for number in (1, 4)
    )
    assert parts.groups[0].up_bytes == pytest.approx(whole.groups[0].up_bytes / 4, rel=0.1)
    assert parts.steps_per_round == whole.steps_per_round // 4
    assert parts.bits == pytest.approx(whole.bits, rel=0.1)


def test_the_largest_fragment_decides():
    config = run_of(fragments=3)
    contribution, update, _, num_values = sizes_of(config)
    sizes = [f.stop - f.start for f in layout_of(config).fragments]
    assert num_values == max(sizes)
    assert (
        sum(contribution) == sum(update) == max(map(sum, encoded_slices(layout_of(config), "int8")))
    )


def test_without_a_peer_that_can_be_dialled_the_host_carries_all():
    config, fleet = run_of(), fleet_of(group_of(reachable=False, count=3))
    seen = forecast(config, fleet)
    num_bytes = sum(sizes_of(config).contribution)
    assert seen.host.slices == seen.slices
    assert seen.host.down_bytes == seen.host.up_bytes == 3 * num_bytes
    assert seen.groups[0].slices == 0


def test_a_slow_peer_holds_no_round_longer_than_the_grace_time():
    fast, slow = group_of("fast", count=9), group_of("slow", count=1, peak_tflops=0.5)
    config = run_of(grace_factor=0.5, grace_floor_s=2.0, quorum=0.6)
    alone = forecast(config, fleet_of(fast))
    seen = forecast(config, fleet_of(fast, slow))
    slow_s = seen.groups[1].steps_s + seen.exchange_s
    assert [group.every for group in seen.groups] == [1, ceil(slow_s / seen.round_s)]
    assert seen.groups[1].every > 5
    assert seen.close_after_s == pytest.approx(alone.close_after_s * 1.5 + 2.0, rel=0.05)
    # With the quorum at all of them, everyone waits.
    patient = forecast(
        structs.replace(config, sync=structs.replace(config.sync, quorum=1.0)), fleet_of(fast, slow)
    )
    assert [group.every for group in patient.groups] == [1, 1]
    assert patient.round_s > seen.groups[1].steps_s


def test_one_slow_peer_within_the_grace_time_is_waited_for():
    fast, slow = group_of("fast", count=9), group_of("slow", count=1, peak_tflops=8.0)
    seen = forecast(run_of(), fleet_of(fast, slow))
    assert [group.every for group in seen.groups] == [1, 1]
    assert seen.groups[0].utilisation < seen.groups[1].utilisation


def test_a_joiner_fetches_the_state_and_what_is_committed_meanwhile():
    config = run_of(inner_steps=400)
    joiner = group_of("joiner", count=1, down_mbps=10.0)
    seen = forecast(config, fleet_of(group_of(), joiner))
    rate, num_bytes = 10e6 / 8 * 0.9549, sum(sizes_of(config).update)
    seconds = seen.groups[1].joins_s
    assert seconds == pytest.approx(
        (seen.state_bytes + num_bytes * seconds / seen.round_s) / rate, rel=1e-3
    )
    assert seen.groups[1].joins_rounds == pytest.approx(seconds / seen.round_s)


def test_a_joiner_whose_line_the_updates_fill_never_catches_up():
    config = run_of(mode="overlap", quorum=0.5, grace_floor_s=0.0, grace_factor=0.0)
    joiner = group_of("joiner", count=1, down_mbps=1.0)
    seen = forecast(config, fleet_of(group_of(count=8), joiner))
    assert seen.groups[1].joins_s is None


groups = st.builds(
    group_of,
    count=st.integers(1, 6),
    peak_tflops=st.floats(1, 100),
    up_mbps=st.floats(1, 1000),
    down_mbps=st.floats(1, 1000),
    rtt_ms=st.floats(0, 300),
    reachable=st.just(True),
)
modes = st.sampled_from(["blocking", "overlap"])


@settings(deadline=None, max_examples=50)
@given(groups, modes, st.floats(1, 10))
def test_a_faster_line_never_makes_a_round_longer(group, mode, times):
    config = run_of(mode=mode, quorum=1.0, min_peers=group.count)  # nobody is left out
    faster = structs.replace(
        group, up_mbps=group.up_mbps * times, down_mbps=group.down_mbps * times
    )
    before, after = (forecast(config, fleet_of(each)).round_s for each in (group, faster))
    assert after <= before * (1 + 1e-9)


@settings(deadline=None, max_examples=50)
@given(groups, modes)
def test_a_larger_codec_never_makes_a_round_shorter(group, mode):
    lengths = [
        forecast(
            run_of(
                mode=mode,
                codec=codec,
                update_codec=update_codec,
                quorum=1.0,  # nobody is left out
                min_peers=group.count,
            ),
            fleet_of(group),
        ).round_s
        for codec, update_codec in CODEC_PAIRS
    ]
    assert lengths == sorted(lengths, reverse=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(groups, min_size=1, max_size=4), modes, st.sampled_from([1, 4]))
def test_nobody_trains_more_than_all_the_time(groups, mode, fragments):
    named = [structs.replace(group, name=str(number)) for number, group in enumerate(groups)]
    config, fleet = run_of(mode=mode, fragments=fragments), fleet_of(*named)
    seen = forecast(config, fleet)
    assert all(0 < group.utilisation <= 1 for group in seen.groups)
    assert any(group.on_time for group in seen.groups)
    assert seen.round_s >= max(g.steps_s for g in seen.groups if g.on_time) * (1 - 1e-9)
    assert all(isinstance(said, str) for said in concerns(config, fleet, seen))


def test_ten_thousand_peers_are_a_matter_of_seconds_of_arithmetic():
    seen = forecast(run_of(), fleet_of(group_of(count=10_000)))
    assert seen.num_peers == 10_000
    num_groups = seen.groups[0].slices * 10_000 / seen.slices
    assert num_groups == pytest.approx(round(num_groups))
    assert 10_000 / 18 < num_groups < 2 * 10_000 / 18, "regions of 18 who can reduce, and less"


def test_groups_of_one_place_are_in_one_point_and_those_without_are_anywhere():
    fleet = fleet_of(
        group_of("a", count=2, place="here", rtt_ms=100.0),
        group_of("b", count=1, rtt_ms=100.0),
        group_of("c", count=1, place="there", rtt_ms=100.0),
        group_of("d", count=1, place="here", rtt_ms=100.0),
    )
    points = positions_of(fleet)
    here = {points[PeerId(name)] for name in ("000000", "000001", "000004")}
    there = {points[PeerId("000003")]}
    assert set(points) == {PeerId(f"{number:06}") for number in (0, 1, 3, 4)}
    assert len(here) == 1
    (one,), (other,) = here, there
    assert abs(one.x - other.x) == pytest.approx(0.1), "a round trip"


def test_the_machine_of_the_host_holds_a_state_and_what_it_reduces():
    small = HostConfig(up_mbps=100.0, down_mbps=100.0, memory_gib=1.0)
    seen = forecast(run_of(model=PRESETS["150m"]), fleet_of(group_of(), host=small))
    assert seen.host.memory.vectors == 8 * seen.num_values
    assert seen.host.memory.total > seen.host.memory_has


def test_intellect_1_as_its_report_has_it():
    """100 steps take 38 min at 43.3 % of the peak, the global exchange 469 s (arXiv 2412.01152)."""
    config = load_run_config(ROOT / "configs" / "intellect-1.toml")
    fleet = load_fleet(ROOT / "configs" / "fleets" / "intellect-1.toml")
    seen = forecast(config, fleet)
    assert seen.groups[0].steps_s == pytest.approx(38 * 60, rel=0.01)
    ring = ring_rate(num_bytes=seen.num_values, num_peers=14, seconds=469)
    assert ring * 8 / 1e6 == pytest.approx(323.5, abs=0.1)
    assert fleet.groups[0].up_mbps == pytest.approx(ring * 8 / 1e6 / 0.9549, rel=1e-3)
    moved_s = seen.groups[0].send_s + seen.groups[0].fetch_s
    # 13/14 of a contribution, and 14/14 of an update: one more is the host's. In whole slices.
    assert moved_s == pytest.approx(469 * 27 / 26 * 1.03125, rel=0.02)
    assert seen.utilisation == pytest.approx(0.793, abs=0.002)
    overlapped = structs.replace(config, sync=structs.replace(config.sync, mode="overlap"))
    assert forecast(overlapped, fleet).utilisation == pytest.approx(0.9867, abs=0.0005)
