from collections import Counter

import pytest
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, SYNC, A, B, C

from atoll.host.membership import Member, Membership
from atoll.ids import PeerId, RoundId, digest_of
from atoll.net.wire import Address

STATE = digest_of(b"state")
ADDRESS = Address(peer=A, host="h", port=1)


@pytest.fixture
def membership() -> Membership:
    membership = Membership()
    for peer in (C, A):
        membership.enter(Member(peer=peer, name=peer[:1]), now=100.0)
    return membership


def test_members_come_in_the_order_of_their_ids(membership):
    assert [m.peer for m in membership.connected()] == [A, C]
    assert A in membership
    assert B not in membership
    assert membership.is_connected(A)
    assert not membership.is_connected(B)


@pytest.mark.parametrize(("at", "silent"), [(110.0, []), (110.1, [A])])
def test_who_says_nothing_for_too_long_is_silent(membership, at, silent):
    membership.hear(C, now=105.0)
    assert membership.silent(SYNC, now=at) == silent


@pytest.mark.parametrize(("at", "overdue"), [(150.0, []), (150.1, [C])])
def test_who_is_away_for_too_long_is_overdue(membership, at, overdue):
    membership.lose(C, now=120.0)
    assert membership.overdue(SYNC, now=at) == overdue
    assert C not in membership.silent(SYNC, now=at)


def test_a_second_loss_of_the_same_connection_does_not_start_the_time_again(membership):
    membership.lose(C, now=120.0)
    membership.lose(C, now=149.0)
    assert membership.overdue(SYNC, now=150.1) == [C]


def test_who_is_away_has_no_address_and_no_state_until_it_says_hello_again(membership):
    membership.reach(A, ADDRESS)
    membership.report(A, round_id=RoundId(3), state=STATE, device="cpu")
    member = membership.get(A)
    assert (member.address, member.probed, member.round, member.state) == (ADDRESS, True, 3, STATE)
    membership.lose(A, now=101.0)
    member = membership.get(A)
    assert (member.address, member.state, member.connected) == (None, None, False)
    membership.enter(Member(peer=A, name="a", connected=False), now=102.0)
    member = membership.get(A)
    assert (member.connected, member.changed_at) == (True, 102.0)
    assert A not in membership.silent(SYNC, now=112.0)
    assert not member.probed


def test_a_report_without_a_device_keeps_the_one_before(membership):
    membership.report(A, round_id=RoundId(1), state=STATE, device="cuda")
    membership.report(A, round_id=RoundId(2), state=None)
    assert membership.get(A).device == "cuda"


def test_what_is_said_of_nobody_changes_nothing(membership):
    membership.hear(B, now=1.0)
    membership.reach(B, None)
    membership.report(B, round_id=RoundId(1), state=STATE)
    membership.lose(B, now=1.0)
    membership.remove(B)
    membership.remove(A)
    assert set(membership.members) == {C}
    assert BUILT_IN not in membership


def test_each_of_those_that_can_be_reached_is_named_to_equally_many():
    membership, peers = Membership(), [PeerId(f"{n:032}") for n in range(10)]
    for peer in peers:
        membership.enter(Member(peer=peer, name=""), now=0.0)
        membership.reach(peer, replace(ADDRESS, peer=peer))
    named = Counter(other for peer in peers for other in membership.around(peer, 3))
    assert named == dict.fromkeys(peers, 3)
    assert membership.around(peers[8], 3) == [peers[8], peers[9], peers[0]]
    assert membership.around(A, 3) == peers[:3], "behind the last one is the first"
    membership.lose(peers[9], now=1.0)
    membership.remove(peers[0])
    assert membership.around(peers[8], 3) == [peers[8], peers[1], peers[2]]
    assert membership.around(peers[8], 8) == membership.reachable() == peers[1:9]


def test_who_is_to_be_measured_is_named_equally_often_and_near_and_far_in_the_circle():
    membership, peers = Membership(), [PeerId(f"{n:032}") for n in range(200)]
    for peer in peers:
        membership.enter(Member(peer=peer, name=""), now=0.0)
        membership.reach(peer, replace(ADDRESS, peer=peer))
    named = Counter(other for peer in peers for other in membership.scattered(peer, 12))
    assert named == dict.fromkeys(peers, 12)
    steps = [int(other) for other in membership.scattered(peers[0], 12)]
    assert steps[0] == 1
    assert steps[-1] > 100
    assert membership.scattered(peers[7], 200) == [p for p in peers if p != peers[7]]
    assert Membership().scattered(A, 12) == []
