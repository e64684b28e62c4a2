"""What a member says that it moved: each byte once, and never less than nothing."""

from dataclasses import dataclass

from hypothesis import given, strategies as st
from tests.unit.host.scene import CONFIG

from atoll.events import BytesMoved
from atoll.exchange.links import Links
from atoll.ids import RoundId
from atoll.peer.accounts import Accounts
from atoll.traffic import Traffic


@dataclass
class Counters:
    """A transport, as far as accounts look at it."""

    num_sent: int = 0
    num_received: int = 0


def test_a_payload_that_is_half_sent_at_an_outer_step_counts_once():
    counters, told = Counters(), []
    links = Links(counters)
    accounts = Accounts(CONFIG, links, emit=told.append)

    counters.num_sent += 1000 + 20  # half of a payload, and a message
    accounts.close_round(RoundId(1))
    counters.num_sent += 1000 + 30
    links.traffic.state_sent += 2000  # it is whole now
    accounts.close_round(RoundId(2))
    counters.num_sent += 40
    accounts.close_round(RoundId(3))

    moved = [event.traffic for event in told if isinstance(event, BytesMoved)]
    assert [m.state_sent for m in moved] == [0, 2000, 0]
    assert all(m.control_sent >= 0 for m in moved)
    assert accounts.untold == Traffic(state_sent=2000, control_sent=1020)


def test_at_the_end_all_is_told_that_the_host_does_not_know():
    counters, told = Counters(), []
    links = Links(counters)
    accounts = Accounts(CONFIG, links, emit=told.append)
    counters.num_sent += 10
    accounts.close_round(RoundId(1))
    counters.num_sent += 500
    links.traffic.updates_sent += 500
    assert accounts.close(RoundId(1)) == Traffic(updates_sent=500, control_sent=10)
    assert accounts.untold == Traffic()
    moved = [event.traffic for event in told if isinstance(event, BytesMoved)]
    assert sum(moved, Traffic()) == Traffic(updates_sent=500, control_sent=10)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=20))
def test_what_is_told_is_never_less_than_nothing(rounds):
    counters = Counters()
    links = Links(counters)
    accounts = Accounts(CONFIG, links, emit=lambda _: None)
    on_its_way = 0
    for number, (sent, finished) in enumerate(rounds, start=1):
        counters.num_sent += sent
        on_its_way += sent
        whole = min(finished, on_its_way)
        on_its_way -= whole
        links.traffic.updates_sent += whole
        accounts.close_round(RoundId(number))
        assert accounts.untold.control_sent >= 0
        assert accounts.untold.updates_sent == links.traffic.updates_sent
