"""Whom others relieve in a round of regions, as a value. X, Y, Z reduce regions, ROOT the rest."""

from collections.abc import Sequence

import pytest
from tests.unit.host.scene import SYNC, contribution, delivered, name

from atoll.exchange.tree import Tree
from atoll.host import rounds
from atoll.host.decision import Present, Replace, Share, Wait
from atoll.host.open_round import Phase, Round
from atoll.host.relief import relieve, shunned_reducers, suspects
from atoll.ids import PeerId, RoundId
from atoll.net import wire

X, Y, Z, ROOT, OTHER, KEEPER = (PeerId(digit * 32) for digit in "abcdef")
REDUCERS = frozenset({X, Y, Z, ROOT, OTHER, KEEPER})


def peers(region: int, num: int) -> list[PeerId]:
    return [PeerId(f"{region:016x}{k:016x}") for k in range(num)]


def divided(sizes: Sequence[int], *assignment: PeerId, num_slices: int = 1) -> Round:
    """Return a round of regions with so many contributors each, below one root if it takes one."""
    regions = {peer: r for r, size in enumerate(sizes) for peer in peers(r, size)}
    num_groups = len(assignment) // num_slices
    return Round(
        id=RoundId(1),
        opened_at=0.0,
        waited=set(regions),
        invited=set(regions),
        assignment=assignment,
        widths=(num_groups - 1, 1) if num_groups > 1 else (1,),
        regions=regions,
        version=1,
        roster_version=1,
    )


def present(rnd: Round) -> Present:
    everybody = frozenset(rnd.invited) | REDUCERS
    return Present(
        connected=everybody,
        away=frozenset(),
        able=everybody,
        can_reduce=REDUCERS,
        keeper=KEEPER,
    )


def claims(rnd: Round, peer: PeerId, *, at: float) -> None:
    said = contribution(peer, num_slices=rnd.num_slices)
    rounds.claim(rnd, peer, said, now=at)
    rounds.count_claim(rnd, peer, said, now=at)


def arrives(rnd: Round, peer: PeerId, *, at: float) -> None:
    rounds.deliver(rnd, rnd.assignment[rnd.group_of(peer)], delivered(peer, 0), now=at)


# --- who is out of reach -------------------------------------------------------------------------


def shunned(rnd: Round) -> frozenset[PeerId]:
    return shunned_reducers(rnd, set(rnd.invited), present(rnd))


def test_the_members_of_a_region_speak_for_its_reducers_whatever_others_lack():
    rnd = divided([2, 2], X, Y, ROOT)
    one, other = peers(0, 2)
    rounds.complain(rnd, one, X)
    assert shunned(rnd) == set()
    rounds.complain(rnd, other, X)
    assert shunned(rnd) == {X}


def test_whoever_misses_half_of_those_that_it_needs_is_believed_and_with_more_it_is_the_one():
    rnd = divided([2, 2], X, Y, ROOT)
    rounds.complain(rnd, ROOT, X)
    assert shunned(rnd) == {X}
    rounds.complain(rnd, ROOT, Y)
    assert shunned(rnd) == {ROOT}


def test_whoever_needs_a_single_one_is_believed():
    rnd = divided([2, 2], X, X, ROOT)
    rounds.complain(rnd, ROOT, X)
    assert shunned(rnd) == {X}


def test_whoever_adds_up_another_slice_has_nothing_to_complain_about():
    rnd = divided([2, 2], X, Y, Z, Z, ROOT, OTHER, num_slices=2)
    rounds.complain(rnd, OTHER, X)  # the sums of X go to the root of the first slice
    assert shunned(rnd) == set()
    rounds.complain(rnd, OTHER, Y)
    assert shunned(rnd) == {Y}


# --- who is stuck --------------------------------------------------------------------------------


def closed(rnd: Round, *, at: float = 1.0) -> Round:
    roster = tuple(Share(peer=peer, share=0.25, num_tokens=10) for peer in sorted(rnd.invited))
    for share in roster:
        claims(rnd, share.peer, at=at)
    rounds.close(rnd, roster, now=at)
    return rnd


def forms(rnd: Round, group: int, *, at: float = 2.0) -> None:
    place = rnd.tree.place(group, 0)
    message = wire.Reduced(
        round=rnd.id,
        roster_version=rnd.roster_version,
        slice=0,
        digest=name("sum", group),
        group=None if group == rnd.tree.root else group,
        parts=tuple(name("sum", child) for child in rnd.below(group)),
    )
    rounds.reduce(rnd, rnd.assignment[place], message, now=at)


def test_whoever_waits_for_a_sum_is_not_the_one_that_is_stuck():
    rnd = closed(divided([2, 2], X, Y, ROOT))
    assert suspects(rnd, present(rnd)) == {X, Y}
    forms(rnd, 0)
    assert suspects(rnd, present(rnd)) == {Y}
    forms(rnd, 1)
    assert suspects(rnd, present(rnd)) == {ROOT}


def test_who_held_an_update_that_is_to_be_formed_again_says_nothing_of_its_new_reducer():
    """The bytes will be the same; until then there is nothing to compare with."""
    rnd = closed(divided([2, 2], X, Y, ROOT))
    for group in range(3):
        forms(rnd, group)
    digests = (name("sum", 2),)
    message = wire.Held(round=rnd.id, roster_version=rnd.roster_version, digests=digests)
    rounds.hold(rnd, KEEPER, message, now=3)
    rounds.reassign(rnd, (X, Y, OTHER), now=4)
    assert suspects(rnd, present(rnd)) == {OTHER}


# --- other regions --------------------------------------------------------------------------------


def test_a_round_that_is_divided_anew_collects_from_the_beginning():
    """Places have another meaning by then. Who is in no region yet joins the smallest one."""
    rnd = closed(divided([5], X))
    version, (*some, late_one) = rnd.version, peers(0, 5)
    for peer in some:
        arrives(rnd, peer, at=2)
    rounds.reassign(rnd, (Y,), now=3)
    arrives(rnd, some[0], at=3)
    forms(rnd, 0)
    rounds.divide_anew(rnd, Tree(1, (2, 1)), {p: p in some[:3] for p in some}, (X, Y, ROOT))
    assert rnd.phase is Phase.COLLECT
    assert rnd.regions == {**dict.fromkeys(some[:3], 1), some[3]: 0, late_one: 0}
    assert not any((rnd.roster, rnd.announced, rnd.reduced, rnd.completed_at))
    assert not any((rnd.delivered, rnd.collected_at, rnd.moved_at))
    assert rnd.version == version + 2, "each plan has one of its own"


# --- who is too slow -----------------------------------------------------------------------------


def collecting(*, last_claim_at: float = 10.0, arrivals: Sequence[float]) -> Round:
    """Return a round that waits for two of three at X, since 12; for seven of eleven at Y.

    Seven bring something. Nobody is waited for in the third region.
    """
    rnd = divided([3, 11, 2], X, Y, Z, ROOT)
    rnd.waited -= set(peers(2, 2))
    many = peers(1, 7)
    for peer in (*peers(0, 3), *many):
        claims(rnd, peer, at=last_claim_at if peer == many[-1] else 10.0)
    for peer, at in zip(peers(0, 3), (11, 12, 13), strict=True):
        arrives(rnd, peer, at=at)
    for peer, at in zip(many, arrivals, strict=False):
        arrives(rnd, peer, at=at)
    return rnd


def late(rnd: Round, *, at: float) -> frozenset[PeerId]:
    due = relieve(rnd, now=at, present=present(rnd), policy=SYNC)
    return due.reducers if isinstance(due, Replace) else frozenset()


def test_a_region_of_which_nobody_is_waited_for_makes_nobody_else_look_quick():
    """X needed 2 s for its slice. Y has 5 of 7, and needs 4 s for the rest, or more."""
    rnd = collecting(arrivals=[12, 13, 14, 15, 19.8])
    assert late(rnd, at=19.9) == set()  # X was done at 12; 2 s, and half of 12
    assert late(rnd, at=20.0) == {Y}


def test_a_region_is_late_by_what_came_last():
    """One of seven is missing. In the mean each took 1.7 s, where others would need 2."""
    assert late(collecting(arrivals=[12, 13, 14, 15, 16, 19.9]), at=20.0) == set()
    assert late(collecting(arrivals=[12, 13, 14, 15, 16, 17.9]), at=20.0) == {Y}


def test_a_region_has_time_of_its_own_from_when_its_quorum_has_begun():
    rnd = collecting(last_claim_at=14.0, arrivals=[15, 16])
    assert late(rnd, at=22.9) == set()
    assert late(rnd, at=23.0) == {Y}  # 14; 2 s, and half of 14


def test_who_has_brought_a_slice_has_begun_whether_it_has_announced_that_or_not():
    """All are still encoding. X has what it reduces of two of three since 11, and Y nothing."""
    rnd = divided([3], X, Y, num_slices=2)
    for peer, at in zip(peers(0, 3), (10, 11, 12), strict=True):
        rounds.deliver(rnd, X, delivered(peer, 0), now=at)
    assert late(rnd, at=18.4) == set()
    assert late(rnd, at=18.5) == {Y}  # 11; 2 s, and half of 11


def test_before_its_quorum_has_begun_no_region_is_late():
    rnd = collecting(arrivals=[12, 13])
    gone = peers(1, 7)[-1]
    rnd.claimed_at.pop(gone)
    assert isinstance(relieve(rnd, now=1e6, present=present(rnd), policy=SYNC), Wait)


@pytest.mark.parametrize(("num_formed", "is_late"), [(7, False), (1, True)])
def test_whoever_has_formed_most_of_its_sums_may_form_the_last(num_formed, is_late):
    """Y has formed its four within 2 s, so others would need 4 s for the eight of X."""
    rnd = closed(divided([1] * 12, *[X] * 8, *[Y] * 4, ROOT), at=10)
    rnd.completed_at = dict.fromkeys(rnd.invited, 10.0)
    for group in range(8, 12):
        forms(rnd, group, at=12)
    for group in range(num_formed):
        forms(rnd, group, at=19.9)
    assert late(rnd, at=20.0) == ({X} if is_late else set())  # 12; 2 s, and half of 12


@pytest.mark.parametrize("is_closed", [False, True])
def test_updates_that_are_served_say_something_of_members_lines_only_after_the_close(is_closed):
    """Then a member that receives slowly may be what the round waits for, and no reducer."""
    rnd = divided([3], X)
    rnd.usual_s = 2.0
    for peer in peers(0, 3):
        claims(rnd, peer, at=10)
    roster = tuple(Share(peer=peer, share=1 / 3, num_tokens=10) for peer in peers(0, 3))
    rounds.announce(rnd, roster, now=10)
    message = wire.Fetched(round=rnd.id, roster_version=rnd.roster_version, start=0, stop=1)
    rounds.fetch(rnd, peers(0, 1)[0], message, now=12)
    if is_closed:
        rounds.close(rnd, roster, now=12)
        rnd.completed_at = dict.fromkeys(peers(0, 3), 12.0)
    assert (late(rnd, at=1e6) == set()) == is_closed
