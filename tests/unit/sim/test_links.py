"""How lines are shared: nobody has more than it wants or the line has, and nothing lies idle."""

from math import inf, isclose

import pytest
from hypothesis import given, strategies as st

from atoll.sim.links import LINKS, Demand, Link, most_bytes_per_s, share_out

ENDS = 4
demands = st.lists(
    st.builds(
        Demand,
        up=st.integers(0, ENDS - 1),
        down=st.integers(0, ENDS - 1),
        most=st.one_of(st.just(inf), st.floats(1, 100)),
    ),
    max_size=12,
)
capacities = st.fixed_dictionaries(
    {(way, end): st.floats(1, 100) for way in ("up", "down") for end in range(ENDS)}
)


def links_of(demand):
    return ("up", demand.up), ("down", demand.down)


@given(demands, capacities)
def test_shares_are_max_min_fair(wanted, capacity):
    rates = share_out(wanted, capacity)
    used = dict.fromkeys(capacity, 0.0)
    largest = dict.fromkeys(capacity, 0.0)
    for demand, rate in zip(wanted, rates, strict=True):
        assert 0 < rate <= demand.most
        for link in links_of(demand):
            used[link] += rate
            largest[link] = max(largest[link], rate)
    assert all(used[link] <= capacity[link] * (1 + 1e-9) for link in capacity)
    for demand, rate in zip(wanted, rates, strict=True):
        is_content = isclose(rate, demand.most)
        # A full link on which nobody has more: the definition of a bottleneck.
        is_stopped = any(
            isclose(used[link], capacity[link]) and isclose(rate, largest[link])
            for link in links_of(demand)
        )
        assert is_content or is_stopped


def test_a_loss_costs_a_stream_more_the_longer_the_way():
    near = Link(up_bytes_per_s=1e9, down_bytes_per_s=1e9, latency_s=0.005, loss=1e-3)
    far = Link(up_bytes_per_s=1e9, down_bytes_per_s=1e9, latency_s=0.05, loss=1e-3)
    # 1448 bytes every 20 ms, times the root of 1.5 over 0.002.
    assert most_bytes_per_s(near, near) == pytest.approx(1448 / 0.02 * 27.4, rel=0.01)
    assert most_bytes_per_s(far, far) == pytest.approx(most_bytes_per_s(near, near) / 10)
    assert most_bytes_per_s(LINKS["datacenter"], LINKS["datacenter"]) == inf
