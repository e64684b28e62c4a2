"""Bytes and seconds of an exchange, against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from atoll.exchange import plan
from atoll.exchange.plan import Link
from atoll.exchange.positions import Position
from atoll.forecast.exchange import AGENT_BYTES_PER_S, Sizes, exchange_of, payload_rate, ring_rate
from atoll.ids import PeerId

rates = st.floats(1e3, 1e8)
sizes = st.lists(st.integers(1, 10**6), min_size=1, max_size=40)


def line(number: int, *, up: float = 1e6, down: float = 1e6, **changes: bool) -> Link:
    does = {"contributes": True, "reduces": True} | changes
    return Link(PeerId(f"{number:06}"), up, down, **does)


lines = st.lists(st.tuples(rates, rates, st.booleans()), min_size=1, max_size=9).map(
    lambda rows: [
        line(number, up=up, down=down, reduces=reduces or number == 0)
        for number, (up, down, reduces) in enumerate(rows)
    ]
)


def sizes_of(contribution: list[int], update: list[int]) -> Sizes:
    """Return the sizes of slices; partial sums are four times as long as updates."""
    return Sizes(tuple(contribution), tuple(update), tuple(4 * size for size in update), 1)


@pytest.mark.parametrize("num_peers", [2, 4, 8])
def test_equal_peers_move_2_n_minus_1_over_n_of_the_bytes_each_way(num_peers):
    exchange = exchange_of(
        [line(number) for number in range(num_peers)],
        sizes_of([1000] * 32, [1000] * 32),
        region_size=0,
    )
    each_way = 2 * (num_peers - 1) / num_peers * 32_000
    assert exchange.sent_bytes() == pytest.approx(each_way)
    assert exchange.received_bytes() == pytest.approx(each_way)
    assert exchange.seconds() == pytest.approx(each_way / 1e6)


def test_the_built_in_member_fetches_every_update():
    peers = [line(number) for number in range(4)]
    built_in = line(9, contributes=False, reduces=False)
    exchange = exchange_of([*peers, built_in], sizes_of([8] * 4, [8] * 4), region_size=0)
    assert exchange.updates.up_bytes_M.tolist() == [32, 32, 32, 32, 0]
    assert exchange.updates.down_bytes_M.tolist() == [24, 24, 24, 24, 32]


def test_alone_it_reduces_all():
    peers = [line(number, reduces=False) for number in range(3)]
    built_in = line(9, contributes=False)
    exchange = exchange_of([*peers, built_in], sizes_of([5, 5], [2, 3]), region_size=0)
    assert exchange.num_slices_M.tolist() == [0, 0, 0, 2]
    assert exchange.contributions.down_bytes_M.tolist() == [0, 0, 0, 30]
    assert exchange.updates.up_bytes_M.tolist() == [0, 0, 0, 15]
    assert exchange.contributions.up_bytes_M.tolist() == [10, 10, 10, 0]


@settings(deadline=None, max_examples=50)
@given(lines, sizes)
def test_what_is_sent_is_received(members, contribution):
    exchange = exchange_of(members, sizes_of(contribution, contribution), region_size=0)
    for phase in (exchange.contributions, exchange.updates):
        assert phase.up_bytes_M.sum() == pytest.approx(phase.down_bytes_M.sum())
    assert exchange.num_slices_M.sum() == len(contribution)


@settings(deadline=None, max_examples=50)
@given(lines, sizes)
def test_it_takes_no_less_than_what_the_shares_minimise(members, contribution):
    exchange = exchange_of(members, sizes_of(contribution, contribution), region_size=0)
    num_bytes = sum(contribution)
    costs = {"contribution_bytes": num_bytes, "update_bytes": num_bytes}
    least = plan.exchange_s(members, plan.shares_of_work(members, **costs), **costs)
    assert exchange.seconds() >= least * (1 - 1e-6) - _rounding_s(members, contribution)


def _rounding_s(members: list[Link], contribution: list[int]) -> float:
    """Return what whole slices may win over exact shares on the slowest line, at most."""
    slowest = min(min(member.up, member.down) for member in members)
    return 2 * len(members) * max(contribution) / slowest


@settings(deadline=None, max_examples=50)
@given(lines, sizes, st.floats(1, 10))
def test_lines_that_are_all_so_many_times_faster_take_that_part_of_the_time(members, sizes, times):
    faster = [Link(m.peer, m.up * times, m.down * times, m.contributes, m.reduces) for m in members]
    before, after = (
        exchange_of(each, sizes_of(sizes, sizes), region_size=0).seconds()
        for each in (members, faster)
    )
    assert after <= before * (1 + 1e-6)


def test_the_payload_of_a_line_is_what_headers_leave_and_an_agent_can_move():
    assert payload_rate(100.0) == pytest.approx(100e6 / 8 * 0.955, rel=1e-3)
    assert payload_rate(10_000.0) == AGENT_BYTES_PER_S


def test_the_rate_of_a_ring():
    assert ring_rate(num_bytes=700, num_peers=14, seconds=13) == pytest.approx(100)


def test_in_regions_each_reducer_takes_in_its_region_and_passes_updates_on():
    """Of up to eight, with equal lines; one slice; the built-in member turns to the root."""
    peers = [line(number) for number in range(16)]
    built_in = line(99, contributes=False, reduces=False)
    exchange = exchange_of([*peers, built_in], sizes_of([100], [100]), region_size=8)
    taken_M = exchange.contributions.down_bytes_M
    regional = np.flatnonzero(taken_M)
    (root,) = set(np.flatnonzero(exchange.num_slices_M)) - set(regional)
    num = len(regional)
    assert 2 <= num <= 8
    assert exchange.num_levels == 2
    assert taken_M.max() <= 7 * 100
    assert taken_M.sum() == exchange.contributions.up_bytes_M.sum() == (16 - num) * 100
    assert (exchange.updates.up_bytes_M[regional] == 400 + taken_M[regional]).all()
    assert exchange.updates.down_bytes_M[root] == num * 400 + 100
    assert exchange.updates.up_bytes_M[root] == num * 100 + 100
    assert exchange.formed_bytes_M[[root, *regional]].tolist() == [100, *[400] * num]


def test_regions_are_those_of_the_host():
    """Two places far from each other: no slice of a contribution goes from one to the other."""
    peers = [line(number) for number in range(40)]
    where = {one.peer: Position(0.1 * (-1) ** k, 0.0, 0.0, 0.0) for k, one in enumerate(peers)}
    near, by_id = (
        exchange_of(peers, sizes_of([100], [100]), region_size=20, positions=positions)
        for positions in (where, {})
    )
    assert sorted(near.contributions.down_bytes_M)[-3:] == [0, 1900, 1900]
    assert sorted(by_id.contributions.down_bytes_M)[-2:] != [1900, 1900], "ids are chance"


@settings(deadline=None, max_examples=50)
@given(lines, sizes, st.integers(1, 4))
def test_what_is_sent_is_received_in_regions_too(members, contribution, region_size):
    exchange = exchange_of(members, sizes_of(contribution, contribution), region_size=region_size)
    for phase in (exchange.contributions, exchange.updates):
        assert phase.up_bytes_M.sum() == pytest.approx(phase.down_bytes_M.sum())
    assert exchange.num_slices_M.sum() % len(contribution) == 0


def test_a_thousand_contributors_do_not_all_burden_the_same_lines():
    peers = [line(number) for number in range(1000)]
    one, many = (
        exchange_of(peers, sizes_of([100] * 4, [100] * 4), region_size=size) for size in (0, 64)
    )
    assert many.contributions.seconds().max() < one.contributions.seconds().max() / 10
    assert many.seconds() < one.seconds() / 5
