"""One round as a value, and time as a number. Slices 0 and 1 are reduced by C and D."""

from itertools import product
from math import inf, nan

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace
from tests.unit.host.scene import (
    BUILT_IN,
    SYNC,
    A,
    B,
    C,
    D,
    contribution,
    delivered,
    held,
    name,
    reduced,
)

from atoll.host import relief, rounds
from atoll.host.decision import Close, Commit, Expect, Present, Reopen, Replace, Share, Wait
from atoll.host.open_round import NOBODY, Phase, Round, short_of_slices
from atoll.ids import PeerId, RoundId
from atoll.net import wire

E = BUILT_IN
EVERYONE = frozenset({A, B, C, D, E})
WAITING = Wait("waiting for updates to be formed and put on disk")


def opened(*waited, invited=(), at=0.0) -> Round:
    return Round(
        id=RoundId(1),
        opened_at=at,
        waited=set(waited),
        invited={*waited, *invited},
        assignment=(C, D),
        version=1,
        roster_version=1,
    )


def trained_again(peer) -> wire.Contribution:
    """Return what the peer claims after it had to do its work once more."""
    return replace(contribution(peer), digests=tuple(name("again", peer, k) for k in range(2)))


def claims(rnd, peer, message=None, *, at):
    """Let the peer say what it brings, of which no other round has anything."""
    rounds.claim(rnd, peer, message or contribution(peer), now=at)
    if peer in rnd.said and peer not in rnd.in_roster:
        rounds.count_claim(rnd, peer, rnd.said[peer], now=at)


def arrive(rnd, peer, *, at, norm=1.0):
    claims(rnd, peer, at=at)
    rounds.deliver(rnd, C, delivered(peer, 0, norm=norm), now=at)
    rounds.deliver(rnd, D, delivered(peer, 1, norm=norm), now=at)


def decide(rnd, *, at, connected=EVERYONE, away=(), able=(A, B), can_reduce=EVERYONE):
    present = Present(
        connected=connected,
        away=frozenset(away),
        able=frozenset(able),
        can_reduce=connected & can_reduce,
        keeper=E,
    )
    return rounds.decide(rnd, now=at, present=present, policy=SYNC)


def roster_of(rnd, *contributors) -> tuple[Share, ...]:
    num_tokens = dict.fromkeys(contributors, 10)
    return rounds.roster_of(rnd, contributors, num_tokens=num_tokens, policy=SYNC)


def closed(*contributors, at=0.0, waited=(), opened_at=0.0) -> Round:
    """Return a round that was closed with these contributors, at this time."""
    rnd = opened(*contributors, *waited, at=opened_at)
    for peer in contributors:
        arrive(rnd, peer, at=at)
    rounds.close(rnd, roster_of(rnd, *contributors), now=at)
    return rnd


def expected(*contributors, at=1.0) -> Round:
    """Return a round that waits for these, who are all on their way."""
    rnd = opened(*contributors)
    for peer in contributors:
        claims(rnd, peer, at=at)
    assert decide(rnd, at=at) == Expect(contributors)
    rounds.announce(rnd, roster_of(rnd, *contributors), now=at)
    return rnd


# --- the close -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrivals", "at", "expected"),
    [
        ({}, 1000.0, Wait("0 delivered, 2 are needed")),
        ({A: 10}, 1000.0, Wait("1 delivered, 2 are needed")),
        ({A: 10, B: 20}, 20.0, Wait("waiting for 1 of 3")),
        ({A: 10, B: 20}, 31.9, Wait("waiting for 1 of 3")),  # grace: 2 s + half of 20 s
        ({A: 10, B: 20}, 32.0, Close((A, B), "the grace time is over, 1 missing")),
        ({A: 10, C: 31, B: 20}, 31.0, Close((A, B, C), "all delivered")),
    ],
)
def test_a_round_closes_with_everyone_or_with_the_quorum_after_the_grace_time(
    arrivals, at, expected
):
    rnd = opened(A, B, C)
    for peer, arrived_at in arrivals.items():
        arrive(rnd, peer, at=arrived_at)
    assert decide(rnd, at=at) == expected


@pytest.mark.parametrize(
    ("usual_wait_s", "closes_at"), [(0.0, 3.5), (2.0, 4.0), (40.0, 23.0), (400.0, 203.0)]
)
def test_a_quorum_with_carried_work_leaves_the_others_the_grace_time_of_usual_rounds(
    usual_wait_s, closes_at
):
    rnd = opened(A, B, C)
    rnd.usual_wait_s = usual_wait_s
    arrive(rnd, A, at=0.5)
    arrive(rnd, B, at=1)
    assert isinstance(decide(rnd, at=closes_at - 1.1), Wait)
    assert isinstance(decide(rnd, at=closes_at), Close)


def test_the_usual_wait_is_that_of_the_middle_contributor():
    rnd = opened(A, B, C, at=100)
    for peer, arrived_at in ((A, 110), (C, 150), (B, 120)):
        arrive(rnd, peer, at=arrived_at)
    assert rounds.middle_wait_s(rnd) == 20


@pytest.mark.parametrize(("at", "closes"), [(21.9, False), (22.0, True)])
def test_who_lost_its_connection_gets_the_least_grace(at, closes):
    rnd = opened(A, B, D)
    rnd.assignment = (C, C)
    for peer, arrived_at in ((A, 10), (B, 20)):
        claims(rnd, peer, at=arrived_at)
        for k in range(2):
            rounds.deliver(rnd, C, delivered(peer, k), now=arrived_at)
    decision = decide(rnd, at=at, connected=frozenset({A, B, C}), away=frozenset({D}))
    assert isinstance(decision, Close) == closes


def test_who_is_gone_for_good_is_not_waited_for():
    rnd = opened(A, B)
    arrive(rnd, A, at=10)
    assert decide(rnd, at=10, connected=frozenset({A, C, D})) == Close((A,), "all delivered")


def test_when_all_that_were_waited_for_are_gone_the_round_waits_for_whoever_was_invited():
    rnd = opened(A, invited=(B,))
    there = frozenset({B, C, D})
    assert decide(rnd, at=5, connected=there) == Wait("0 delivered, 1 are needed")
    arrive(rnd, B, at=6)
    assert decide(rnd, at=6, connected=there) == Close((B,), "all delivered")


def test_of_those_who_were_only_invited_the_first_is_not_enough():
    rnd = opened(A, invited=(B, C))
    arrive(rnd, B, at=10)
    assert decide(rnd, at=11, connected=EVERYONE - {A}) == Wait("1 delivered, 2 are needed")


def test_who_has_delivered_and_is_away_still_counts_for_the_quorum():
    rnd = opened(A, B, C, D, E)
    arrive(rnd, A, at=10)
    arrive(rnd, B, at=10)
    gone = {A, B}
    expected = Wait("2 delivered, 3 are needed")
    assert decide(rnd, at=1000, connected=EVERYONE - gone, away=gone) == expected


def test_an_uninvited_latecomer_is_not_in_and_does_not_count():
    rnd = opened(A)
    arrive(rnd, B, at=1)
    assert not rnd.claims
    assert not rnd.delivered
    assert decide(rnd, at=1) == Wait("0 delivered, 1 are needed")


# --- what may be said, and by whom ---------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        replace(contribution(A), digests=(name("one"),)),
        replace(contribution(A), digests=(name("one"),) * 3),
        replace(contribution(A), mean_loss=nan),
        replace(contribution(A), mean_loss=inf),
    ],
)
def test_a_claim_that_makes_no_sense_is_not_noted(message):
    rnd = opened(A)
    claims(rnd, A, message, at=1)
    assert not rnd.claims


@pytest.mark.parametrize(
    ("reducer", "message"),
    [
        (D, delivered(A, 0)),  # it is C's
        (E, delivered(A, 0)),
        (C, delivered(A, 2)),  # there are two slices
        (C, delivered(A, 0, norm=nan)),
        (C, delivered(A, 0, norm=inf)),
        (C, delivered(A, 0, norm=-1.0)),
        (C, delivered(B, 0)),  # not invited
    ],
)
@pytest.mark.parametrize("phase", Phase)
def test_a_reducer_speaks_only_for_its_own_slices_and_of_what_it_may(phase, reducer, message):
    rnd = opened(A)
    claims(rnd, A, at=0)
    if phase is Phase.REDUCE:
        arrive(rnd, A, at=0)
        rounds.close(rnd, rounds.roster_of(rnd, (A,), num_tokens={A: 1}, policy=SYNC), now=0)
    before = {peer: dict(slices) for peer, slices in rnd.delivered.items()}
    rounds.deliver(rnd, reducer, message, now=50)
    assert rnd.delivered == before
    assert rnd.progress_at == 0


def test_a_contributor_is_complete_when_what_arrived_is_what_it_claims():
    rnd = opened(A)
    rounds.deliver(rnd, C, delivered(A, 0), now=1)
    rounds.deliver(rnd, D, delivered(A, 1), now=2)
    assert not rnd.completed_at
    claims(rnd, A, at=3)
    assert rnd.completed_at == {A: 3}
    rounds.deliver(rnd, D, delivered(A, 1), now=4)  # said again, after the host was away
    assert rnd.completed_at == {A: 3}
    rounds.deliver(rnd, D, delivered(A, 1, digest=name("another")), now=5)
    assert rnd.completed_at == {A: 3}, "the reducer has both"
    claims(rnd, A, replace(contribution(A), digests=(name("other"), name("another"))), at=6)
    assert not rnd.completed_at
    rounds.deliver(rnd, C, delivered(A, 0, digest=name("other")), now=7)
    assert rnd.completed_at == {A: 7}


def test_nothing_at_all_can_be_contributed():
    """Whose weights have not moved has a norm of 0."""
    rnd = opened(A)
    arrive(rnd, A, at=1, norm=0.0)
    assert decide(rnd, at=1) == Close((A,), "all delivered")


def test_there_is_no_group_above_the_root():
    rnd = closed(A, at=1)
    message = replace(reduced(0, version=rnd.roster_version), group=rnd.tree.num_groups)
    rounds.reduce(rnd, C, message, now=2)
    assert not rnd.reduced


def test_after_the_close_nothing_changes_what_the_roster_delivered():
    rnd = closed(A, B, at=1)
    claims(rnd, A, trained_again(A), at=2)
    rounds.deliver(rnd, C, delivered(A, 0, digest=trained_again(A).digests[0]), now=2)
    assert rnd.claims[A] == contribution(A)
    assert rnd.completed_at == {A: 1, B: 1}
    assert rnd.progress_at == 1, "the round does not wait for it"


def test_a_reducer_that_names_ever_more_slices_does_not_fill_the_hosts_memory():
    rnd = closed(A, at=1)
    claims(rnd, A, trained_again(A), at=2)
    for version in range(100):
        rounds.deliver(rnd, C, delivered(A, 0, digest=name(version)), now=2)
    for k, reducer in enumerate((C, D)):
        rounds.deliver(rnd, reducer, delivered(A, k, digest=trained_again(A).digests[k]), now=3)
    assert len(rnd.delivered[A]) == 3 * 2
    assert rnd.completed_at == {A: 1}
    rounds.reopen(rnd)
    rounds.count_claim(rnd, A, rnd.said[A], now=4)
    assert rnd.completed_at == {A: 4}


def test_of_one_that_claims_nothing_the_newest_slices_are_kept():
    rnd = opened(A)
    names = [name("version", k) for k in range(9)]
    for digest in names:
        rounds.deliver(rnd, C, delivered(A, 0, digest=digest), now=1)
    assert [digest for _, digest in rnd.delivered[A]] == names[-6:]


def test_one_that_is_not_in_the_roster_may_still_deliver_after_the_close():
    rnd = closed(A, waited=(B,))
    arrive(rnd, B, at=3)
    assert set(rnd.completed_at) == {A, B}
    assert [share.peer for share in rnd.roster] == [A]


@pytest.mark.parametrize("version", [1, 3])
def test_updates_for_another_roster_do_not_count(version):
    rnd = closed(A)
    assert rnd.roster_version == 2
    rounds.reduce(rnd, C, reduced(0, version=version), now=5)
    rounds.hold(rnd, A, held(version=version), now=5)
    assert not rnd.reduced
    assert not rnd.held


def test_updates_of_slices_that_are_not_the_reducers_or_before_the_close_do_not_count():
    rnd = closed(A)
    for reducer, k in ((D, 0), (C, 1), (C, 2)):
        rounds.reduce(rnd, reducer, reduced(k, version=2), now=5)
    assert not rnd.reduced
    rnd = opened(A)
    rounds.reduce(rnd, C, reduced(0, version=1), now=5)
    rounds.hold(rnd, A, held(version=1), now=5)
    assert not rnd.reduced
    assert not rnd.held


# --- the roster ----------------------------------------------------------------------------------


def test_weights_are_tokens_and_a_norm_far_above_the_others_is_clipped():
    rnd = opened(A, B, C)
    for peer, norm in ((A, 2.0), (B, 2.0), (C, 800.0)):  # squared, of each of two slices
        arrive(rnd, peer, at=1, norm=norm)
    roster = rounds.roster_of(rnd, (A, B, C), num_tokens={A: 10, B: 30, C: 10}, policy=SYNC)
    assert [(s.peer, s.num_tokens) for s in roster] == [(A, 10), (B, 30), (C, 10)]
    # The norms are 2, 2 and 40: C counts 3 * 2 / 40 of its 10 tokens.
    assert [s.share for s in roster] == pytest.approx([10 / 41.5, 30 / 41.5, 1.5 / 41.5])


def test_work_that_the_fragment_lacks_has_weight_and_is_not_counted_again():
    rnd = opened(A, B)
    for peer in (A, B):
        arrive(rnd, peer, at=1)
    roster = rounds.roster_of(
        rnd, (A, B), num_tokens={A: 10, B: 10}, fresh_tokens={A: 20, C: 99}, policy=SYNC
    )
    assert [(s.num_tokens, s.share) for s in roster] == [(10, 0.75), (10, 0.25)]


# --- the reduction -------------------------------------------------------------------------------


def reduce_all(rnd, *, at):
    version = rnd.roster_version
    rounds.reduce(rnd, C, reduced(0, version=version), now=at)
    rounds.reduce(rnd, D, reduced(1, version=version), now=at)
    return version


@pytest.mark.parametrize(
    ("holders", "able", "expected"),
    [
        ((), {A, B}, WAITING),
        ((A,), {A, B}, WAITING),
        ((A, B), {A, B}, Commit()),
        ((A, B), {A, B, C}, Commit()),
        ((A, B), {A, B, C, D}, WAITING),  # these two may be a reducer and its friend
        ((A, B, C), {A, B, C, D}, Commit()),
        ((B, C), {A, B}, WAITING),  # C may have left because it said so
        ((A, E), {A, B, E}, Commit()),
        ((A, E), {A, B, C, D}, Commit()),  # the host's own went when it had them
        ((C, D), set(), WAITING),
        ((A, B), {A, B, E}, WAITING),  # the host's own disk is to be one of them
        ((A,), {A}, Commit()),
        ((), set(), WAITING),
    ],
)
def test_a_commit_needs_the_updates_on_two_disks_if_there_are_two(holders, able, expected):
    rnd = closed(A, B)
    version = reduce_all(rnd, at=1)
    for peer in holders:
        rounds.hold(rnd, peer, held(version=version), now=1)
    assert decide(rnd, at=1, able=frozenset(able)) == expected


@given(st.integers(2, 12), st.data(), st.booleans(), st.booleans())
def test_what_no_honest_member_can_decode_is_not_committed_and_its_reducer_goes(
    num_honest, data, keeper_is_able, complain
):
    """D forms bytes that do not decode; it and its friends, a minority, say that they hold them."""
    num_friends = data.draw(st.integers(0, num_honest - 2))
    honest = {PeerId(f"{k:032x}") for k in range(num_honest)} | ({E} if keeper_is_able else set())
    liars = {D, *(PeerId(f"1{k:031x}") for k in range(num_friends))}
    rnd = closed(A, B, at=1)
    version = reduce_all(rnd, at=1)
    for peer in honest | liars:
        rounds.fetch(rnd, peer, fetched(0, 1 + (peer in liars), version=version), now=1)
    for liar in liars:
        rounds.hold(rnd, liar, held(version=version), now=1)
    if complain:
        for peer in honest:
            rounds.complain(rnd, peer, D)
    everyone = frozenset(honest | liars)

    def due(*, at):
        return decide(rnd, at=at, connected=EVERYONE | everyone, able=everyone)

    if complain:
        reason = "a reducer cannot be reached by those who still need it"
        assert due(at=1) == Replace(frozenset({D}), reason)
    else:
        assert due(at=1) == WAITING
        assert due(at=20) == Replace(frozenset({D}), "a reducer does not deliver what it should")


def test_who_holds_other_bytes_is_no_holder():
    rnd = closed(A)
    version = reduce_all(rnd, at=1)
    rounds.hold(rnd, A, replace(held(version=version), digests=(name(1), name(2))), now=1)
    assert isinstance(decide(rnd, at=1, able=frozenset({A})), Wait)


def test_before_all_slices_are_reduced_the_round_waits():
    rnd = closed(A, B)
    rounds.reduce(rnd, C, reduced(0, version=2), now=1)
    assert decide(rnd, at=1) == WAITING


@pytest.mark.parametrize(("at", "commits"), [(13.5, False), (13.6, True)])
def test_the_hosts_own_disk_is_not_waited_for_for_ever(at, commits):
    rnd = closed(A, B, at=1)
    version = reduce_all(rnd, at=1)
    for peer in (A, B):
        rounds.hold(rnd, peer, held(version=version), now=1)
    assert (decide(rnd, at=at, able=(A, B, E)) == Commit()) == commits


# Nothing new for 10 s of silence, 2 s of grace and half of the second that the round took.
@pytest.mark.parametrize(("at", "replaced"), [(13.5, False), (13.6, True)])
def test_a_reducer_that_delivers_nothing_for_too_long_is_replaced(at, replaced):
    rnd = closed(A, B, at=1)
    rounds.reduce(rnd, C, reduced(0, version=2), now=1)
    expected = Replace(frozenset({D}), "a reducer does not deliver what it should")
    assert (decide(rnd, at=at) == expected) == replaced


@pytest.mark.parametrize("phase", Phase)
def test_a_reducer_that_is_gone_is_replaced_at_once(phase):
    rnd = closed(A, B)
    rnd.phase = phase
    decision = decide(rnd, at=1, connected=EVERYONE - {D})
    assert decision == Replace(frozenset({D}), "a reducer is gone")


def test_a_moved_slice_starts_again_and_the_others_stay():
    rnd = closed(A, B, at=1)
    rounds.reduce(rnd, C, reduced(0, version=2), now=1)
    rounds.reduce(rnd, D, reduced(1, version=2), now=1)
    assert rounds.reassign(rnd, (C, E), now=4) == (1,)
    assert set(rnd.reduced) == {0}
    assert {k for k, _ in rnd.delivered[A]} == {0}
    assert not rnd.completed_at
    assert (rnd.version, rnd.progress_at) == (2, 4)
    rounds.deliver(rnd, D, delivered(A, 1), now=5)  # it is not D's any more
    assert {k for k, _ in rnd.delivered[A]} == {0}
    rounds.deliver(rnd, E, delivered(A, 1), now=6)
    assert rnd.completed_at == {A: 6}


@pytest.mark.parametrize(
    ("at", "lost", "expected"),
    [
        (6.0, {B}, WAITING),
        (6.1, {B}, Close((A,), "1 contributors were lost before the reduction")),
        (6.1, {A, B}, Reopen("every contributor was lost before its slices were reduced")),
        (16.5, set(), WAITING),  # those that are there may deliver again
        (16.6, set(), Reopen("every contributor was lost before its slices were reduced")),
    ],
)
def test_contributors_lost_with_a_slice_missing_are_left_out(at, lost, expected):
    rnd = closed(A, B, at=1)
    rounds.reassign(rnd, (C, E), now=4)
    if lost == {B}:
        rounds.deliver(rnd, E, delivered(A, 1), now=4)
    assert decide(rnd, at=at, connected=EVERYONE - lost) == expected


def test_a_contributor_lost_after_its_slices_arrived_stays_in():
    rnd = closed(A, B, at=1)
    assert decide(rnd, at=5, connected=EVERYONE - {B}) == WAITING


def test_closing_again_voids_what_was_formed_and_reopening_the_roster():
    rnd = closed(A, B, at=1)
    reduce_all(rnd, at=2)
    rounds.hold(rnd, A, held(version=2), now=2)
    rounds.close(rnd, rnd.roster[:1], now=3)
    assert (rnd.roster_version, rnd.reduced, rnd.held) == (3, {}, {})
    rounds.reopen(rnd)
    assert (rnd.phase, rnd.roster) == (Phase.COLLECT, ())
    assert set(rnd.claims) == {A, B}


# --- contributors that train again ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("digests", "expected"),
    [
        (trained_again(B).digests, Close((A,), "1 contributors were lost before the reduction")),
        ((name("other"), contribution(B).digests[1]), WAITING),  # what is missing, it still brings
    ],
)
def test_who_brings_another_slice_than_the_one_that_is_missing_is_left_out_at_once(
    digests, expected
):
    rnd = closed(A, B, at=1)
    claims(rnd, B, replace(contribution(B), digests=digests), at=2)
    assert decide(rnd, at=2) == WAITING, "all that the roster names is at its reducers"
    rounds.reassign(rnd, (C, E), now=3)
    rounds.deliver(rnd, E, delivered(A, 1), now=3)
    assert decide(rnd, at=3) == expected


def test_a_round_that_collects_again_takes_what_was_claimed_and_delivered_meanwhile():
    rnd = closed(A, B, at=1)
    claims(rnd, B, trained_again(B), at=2)
    for k, reducer in enumerate((C, D)):
        rounds.deliver(rnd, reducer, delivered(B, k, digest=trained_again(B).digests[k]), now=3)
    rounds.reopen(rnd)
    rounds.count_claim(rnd, B, rnd.said[B], now=4)
    assert rnd.claims == {A: contribution(A), B: trained_again(B)}
    assert rnd.completed_at == {A: 1, B: 4}


@pytest.mark.parametrize("has_delivered", [True, False])
def test_what_one_that_was_killed_had_begun_to_bring_is_neither_expected_nor_waited_for(
    has_delivered,
):
    rnd = opened(A, B)
    claims(rnd, A, at=1)
    arrive(rnd, B, at=1)
    rounds.deliver(rnd, C, delivered(A, 0), now=1)
    if has_delivered:
        rounds.deliver(rnd, D, delivered(A, 1), now=1)
    rounds.forget_said(rnd, A)  # it is back: another process
    present = Present(
        connected=EVERYONE,
        away=frozenset(),
        able=EVERYONE - {A},
        can_reduce=EVERYONE,
        keeper=E,
        resting=frozenset({A}),
    )
    everybody = (A, B) if has_delivered else (B,)
    closes = Close(everybody, "all delivered")
    assert rounds.decide(rnd, now=1, present=present, policy=SYNC) == closes
    assert isinstance(decide(rnd, at=1), Close if has_delivered else Wait)


class Playing:
    """A round of A and B, who say once what they bring, and again when they have trained again."""

    def __init__(self):
        self.rnd, self.at, self.lives = opened(A, B), 0.0, {A: 0, B: 0}
        for peer in (A, B):
            self.says(peer)

    def brings(self, peer):
        return tuple(name(peer, self.lives[peer], k) for k in range(2))

    def says(self, peer):
        claims(self.rnd, peer, replace(contribution(peer), digests=self.brings(peer)), at=self.at)

    def train(self, peer):
        """Let the peer lose what it brings, and have another one."""
        self.lives[peer] += 1
        self.says(peer)

    def bring(self, peers, num_slices=2):
        for peer, k in product(peers, range(num_slices)):
            message = delivered(peer, k, digest=self.brings(peer)[k])
            rounds.deliver(self.rnd, self.rnd.assignment[k], message, now=self.at)

    def move(self, assignment):
        """Let the slices be reduced by others, to whom nothing was brought yet."""
        rounds.reassign(self.rnd, assignment, now=self.at)

    def wait(self, seconds):
        self.at += seconds

    def form(self):
        """Let all be formed, and held, that can be."""
        version = self.rnd.roster_version
        if self.rnd.announced and not short_of_slices(self.rnd):
            for k, reducer in enumerate(self.rnd.assignment):
                rounds.reduce(self.rnd, reducer, reduced(k, version=version), now=self.at)
            for peer in (A, B, E):
                rounds.hold(self.rnd, peer, held(version=version), now=self.at)

    def act(self) -> bool:
        """Do what is due, as the host does; return whether it is the commit."""
        rnd, due = self.rnd, decide(self.rnd, at=self.at)
        match due:
            case Expect(peers=peers):
                rounds.announce(rnd, roster_of(rnd, *peers), now=self.at)
            case Close(peers=peers):
                rounds.close(rnd, roster_of(rnd, *peers), now=self.at)
            case Reopen():
                rounds.reopen(rnd)
            case Replace(reducers=lost):
                other = next(peer for peer in (C, D, E) if peer not in lost)
                self.move(tuple(other if r in lost else r for r in rnd.assignment))
        for peer in {A, B} - set(rnd.in_roster):
            rounds.count_claim(rnd, peer, rnd.said[peer], now=self.at)
        return due == Commit()


steps = st.one_of(
    st.tuples(st.just("train"), st.sampled_from((A, B))),
    st.tuples(st.just("bring"), st.sampled_from([(A,), (B,), (A, B)]), st.sampled_from((1, 2))),
    st.tuples(st.just("move"), st.sampled_from(list(product((C, D, E), repeat=2)))),
    st.tuples(st.just("wait"), st.sampled_from((0.0, 1.0, 8.0, 60.0))),
)


@given(st.lists(steps, max_size=20))
def test_whoever_trains_again_whenever_the_round_ends_with_what_can_be_had(script):
    """At once when all that is still there has arrived: nobody's patience has to run out."""
    playing = Playing()
    for kind, *what in script:
        getattr(playing, kind)(*what)
        playing.act()
    for _ in range(20):
        playing.bring((A, B))
        playing.form()
        if playing.act():
            return
    raise AssertionError(f"nothing ends it: {playing.rnd}")


# --- updates before the close ---------------------------------------------------------------------


def test_updates_are_formed_once_all_are_on_their_way():
    rnd = opened(A, B)
    arrive(rnd, A, at=1)
    assert isinstance(decide(rnd, at=2), Wait)
    claims(rnd, B, at=2)
    assert decide(rnd, at=2) == Expect((A, B))
    rounds.announce(rnd, roster_of(rnd, A, B), now=2)
    assert isinstance(decide(rnd, at=2), Wait)


def test_a_close_as_expected_keeps_what_was_formed_and_fetched():
    rnd = expected(A, B)
    version = rnd.roster_version
    reduce_all(rnd, at=2)
    rounds.hold(rnd, A, held(version=version), now=2)
    rounds.hold(rnd, B, held(version=version), now=2)
    assert isinstance(decide(rnd, at=2), Wait), "nothing is committed before the close"
    arrive(rnd, A, at=3)
    arrive(rnd, B, at=3)
    assert decide(rnd, at=3) == Close((A, B), "all delivered")
    assert not rounds.close(rnd, roster_of(rnd, A, B), now=3)
    assert rnd.roster_version == version
    assert decide(rnd, at=3) == Commit()


def test_a_close_with_other_shares_starts_again():
    rnd = expected(A, B, C)
    reduce_all(rnd, at=2)
    for peer, norm in ((A, 1.0), (B, 1.0), (C, 100.0)):  # C is clipped
        arrive(rnd, peer, at=3, norm=norm)
    assert rounds.close(rnd, roster_of(rnd, A, B, C), now=3)
    assert (rnd.roster_version, rnd.reduced) == (3, {})


def test_without_one_who_was_expected_the_updates_are_formed_again():
    rnd = expected(A, B)
    reduce_all(rnd, at=2)
    assert decide(rnd, at=2, connected=EVERYONE - {B}) == Expect((A,))
    assert isinstance(decide(rnd, at=2, connected=EVERYONE - {B}, away={B}), Wait)


def test_who_trained_again_is_expected_with_what_it_brings_now():
    rnd = expected(A, B)
    claims(rnd, B, trained_again(B), at=2)
    assert rnd.announced == ()
    assert decide(rnd, at=2) == Expect((A, B))


# --- complaints ----------------------------------------------------------------------------------


def test_a_reducer_that_all_who_have_to_deliver_complain_about_is_replaced():
    rnd = expected(A, B)
    rounds.complain(rnd, A, D)
    assert isinstance(decide(rnd, at=2), Wait)
    rounds.complain(rnd, B, D)
    decision = decide(rnd, at=2)
    assert isinstance(decision, Replace)
    assert decision.reducers == {D}


def test_complaints_of_those_who_have_delivered_or_gone_do_not_count():
    rnd = expected(A, B)
    arrive(rnd, A, at=1)
    rounds.complain(rnd, A, D)
    assert isinstance(decide(rnd, at=2), Wait)
    rounds.complain(rnd, B, D)
    assert isinstance(decide(rnd, at=2), Replace)
    assert isinstance(decide(rnd, at=2, connected=EVERYONE - {B}, away=frozenset({B})), Wait)


def test_complaints_about_one_who_reduces_nothing_change_nothing():
    rnd = expected(A)
    rounds.complain(rnd, A, E)
    assert not rnd.complaints
    assert isinstance(decide(rnd, at=2), Wait)


def test_a_reducer_that_nobody_could_replace_stays():
    rnd = expected(A)
    rounds.complain(rnd, A, D)
    assert isinstance(decide(rnd, at=2, can_reduce=frozenset({D})), Wait)
    rnd.excluded.add(E)
    assert isinstance(decide(rnd, at=2, can_reduce=frozenset({D, E})), Wait)
    assert isinstance(decide(rnd, at=2, can_reduce=frozenset({C, D, E})), Replace)


def test_after_the_close_those_who_lack_updates_may_complain():
    rnd = closed(A, B, at=1)
    version = reduce_all(rnd, at=1)
    rounds.complain(rnd, A, D)
    assert decide(rnd, at=2) == WAITING
    rounds.hold(rnd, B, held(version=version), now=2)
    decision = decide(rnd, at=2)
    assert isinstance(decision, Replace)
    assert decision.reducers == {D}


def test_a_reducer_that_serves_other_bytes_than_it_reported_is_replaced():
    rnd = closed(A, B, at=1)
    version = reduce_all(rnd, at=1)
    honest = held(version=version)
    for peer in (A, B):
        other = replace(honest, digests=(honest.digests[0], name("other")))
        rounds.hold(rnd, peer, other, now=2)
    assert decide(rnd, at=14.5) == WAITING
    decision = decide(rnd, at=14.6)
    assert isinstance(decision, Replace)
    assert decision.reducers == {D}


def test_reducers_that_are_stuck_stay_if_there_are_no_others():
    rnd = closed(A, B, at=1)
    assert isinstance(decide(rnd, at=1e6), Replace)
    assert decide(rnd, at=1e6, can_reduce=frozenset({C, D})) == WAITING


def test_while_nobody_reduces_a_slice_it_is_up_to_be_given_away():
    rnd = opened(A)
    rnd.assignment = (C, NOBODY)
    assert decide(rnd, at=1) == Replace(frozenset({NOBODY}), "a reducer is gone")


def test_what_the_roster_delivers_again_is_progress_and_nothing_else_is():
    """Both reducers have gone. Stuck: 10 s of silence, and 2 s, and half of the 1 s it was open."""
    rnd = closed(A, B, at=1)
    rounds.reassign(rnd, (E, E), now=2)
    rounds.deliver(rnd, E, delivered(A, 0), now=10)
    rounds.deliver(rnd, E, delivered(A, 0, digest=name("another")), now=20)
    rounds.deliver(rnd, E, delivered(A, 0), now=21)
    assert decide(rnd, at=22.5) == WAITING
    assert isinstance(decide(rnd, at=22.6), Reopen)


def test_an_update_that_is_formed_is_progress_once():
    rnd = closed(A, B, at=1)
    for at in (10, 20):
        rounds.reduce(rnd, C, reduced(0, version=rnd.roster_version), now=at)
    assert decide(rnd, at=22.5) == WAITING
    decision = decide(rnd, at=22.6)
    assert isinstance(decision, Replace)
    assert decision.reducers == {D}


def test_a_round_is_stuck_by_how_long_it_was_open_not_by_the_clock():
    rnd = closed(A, B, at=101, opened_at=100)
    assert decide(rnd, at=113.5) == WAITING  # 101, 10 of silence, 2, and half of 1
    assert isinstance(decide(rnd, at=113.6), Replace)


def test_when_all_is_fetched_and_nothing_on_disk_no_reducer_is_at_fault():
    rnd = closed(A, B, at=1)
    reduce_all(rnd, at=1)
    for peer in (A, B, E):
        rounds.fetch(rnd, peer, fetched(0, 2), now=2)
    assert decide(rnd, at=1e6) == WAITING


def test_reducers_that_are_stuck_stay_if_all_others_were_no_good():
    rnd = closed(A, B, at=1)
    rnd.excluded = {A, B, E}
    assert decide(rnd, at=1e6) == WAITING


def test_what_is_said_again_is_no_progress():
    rnd = closed(A, B, at=1)
    version = reduce_all(rnd, at=2)
    rounds.hold(rnd, A, held(version=version), now=3)
    assert rnd.progress_at == 3
    reduce_all(rnd, at=4)
    rounds.hold(rnd, A, held(version=version), now=4)
    rounds.deliver(rnd, C, delivered(A, 0), now=4)
    assert rnd.progress_at == 3
    rounds.hold(rnd, B, replace(held(version=version), digests=(name(1),)), now=5)
    assert (rnd.progress_at, set(rnd.held)) == (3, {A})


def test_weights_do_not_depend_on_which_slices_a_new_reducer_has_by_now():
    rnd = opened(A, B)
    arrive(rnd, A, at=1)
    arrive(rnd, B, at=1)
    tokens = {A: 100, B: 100}
    before = rounds.roster_of(rnd, (A, B), num_tokens=tokens, policy=SYNC)
    rounds.close(rnd, before, now=1)
    rounds.reassign(rnd, (A, A), now=2)
    rounds.deliver(rnd, A, delivered(A, 0), now=2)  # B is still uploading
    assert rounds.roster_of(rnd, (A, B), num_tokens=tokens, policy=SYNC) == before


# --- reducers that are too slow ------------------------------------------------------------------


def relieve(rnd, *, at, able=(A, B, C, E), can_reduce=EVERYONE):
    present = Present(
        connected=EVERYONE,
        away=frozenset(),
        able=frozenset(able),
        can_reduce=frozenset(can_reduce),
        keeper=E,
    )
    return relief.relieve(rnd, now=at, present=present, policy=SYNC)


SLOWER = "others would be done sooner than a slow reducer"


def collecting(*, usual_s=None):
    """Return a round in which all is at C, and D has one slice of three."""
    rnd = opened(A, B, C)
    rnd.usual_s = usual_s
    for peer in (A, B, C):
        claims(rnd, peer, at=10)
        rounds.deliver(rnd, C, delivered(peer, 0), now=12)
    rounds.deliver(rnd, D, delivered(A, 1), now=13)
    return rnd


# C was done at 12; grace: 2 s and half of 12 s.
@pytest.mark.parametrize(("at", "expected"), [(19.9, frozenset()), (20.0, frozenset({D}))])
def test_a_reducer_that_keeps_complete_contributors_waiting_is_replaced(at, expected):
    decision = relieve(collecting(), at=at)
    assert getattr(decision, "reducers", frozenset()) == expected


def test_a_late_contributor_is_no_fault_of_the_reducers():
    """Two of three make the quorum, so all reducers are done; the third is left out."""
    rnd = opened(A, B, C)
    for peer in (A, B):
        arrive(rnd, peer, at=12)
    claims(rnd, C, at=12)
    rounds.deliver(rnd, C, delivered(C, 0), now=13)
    assert isinstance(relieve(rnd, at=19.9), Wait)
    assert decide(rnd, at=20.0) == Close((A, B), "the grace time is over, 1 missing")


def test_reducers_that_lack_each_others_contribution_are_both_replaced():
    """One of two has a slow line, but nobody knows which: all else was quick enough."""
    rnd = opened(A, C, D)
    rnd.usual_s = 1.0
    for peer in (A, C, D):
        claims(rnd, peer, at=10)
    for reducer, peer, k in [(C, A, 0), (C, C, 0), (D, A, 1), (D, D, 1)]:
        rounds.deliver(rnd, reducer, delivered(peer, k), now=11)
    assert decide(rnd, at=1e6) == Expect((A, C, D))  # and no quorum
    assert isinstance(relieve(rnd, at=18.4), Wait)
    assert relieve(rnd, at=18.5) == Replace(frozenset({C, D}), SLOWER)  # 11, 2, and half of 11
    rounds.deliver(rnd, D, delivered(C, 1), now=18)  # a quorum: D is the contributor that is late
    assert isinstance(relieve(rnd, at=18.5), Wait)


def test_a_slow_reducer_that_nobody_else_could_replace_stays():
    assert isinstance(relieve(collecting(), at=1e6, can_reduce=(D,)), Wait)
    rnd = collecting()
    rnd.excluded = {C, E, A, B}
    assert isinstance(relieve(rnd, at=1e6), Wait)


def test_after_a_move_the_new_reducer_has_its_own_time():
    rnd = collecting()
    rounds.reassign(rnd, (C, A), now=20)
    assert isinstance(relieve(rnd, at=31.9), Wait)
    assert relieve(rnd, at=32.0) == Replace(frozenset({A}), SLOWER)


def test_slices_that_a_live_reducer_has_stay_there_when_another_is_replaced():
    rnd = collecting()
    assert rounds.reassign(rnd, (C, E), now=20) == (1,)
    assert all({k for k, _ in slices} == {0} for slices in rnd.delivered.values())
    for peer in (A, B, C):
        rounds.deliver(rnd, E, delivered(peer, 1), now=21)
    assert decide(rnd, at=21) == Close((A, B, C), "all delivered")


def fetched(start, stop, *, version=2):
    return wire.Fetched(round=RoundId(1), roster_version=version, start=start, stop=stop)


def test_a_reducer_whose_updates_reach_nobody_is_replaced():
    rnd = closed(A, B, at=10)
    reduce_all(rnd, at=11)
    for peer in (A, B, E):
        rounds.fetch(rnd, peer, fetched(0, 1), now=12)
    rounds.fetch(rnd, A, fetched(1, 2), now=13)  # on one disk, and not on the host's
    assert isinstance(relieve(rnd, at=19.9), Wait)
    assert relieve(rnd, at=20.0) == Replace(frozenset({D}), SLOWER)
    rounds.fetch(rnd, E, fetched(1, 2), now=19)
    assert isinstance(relieve(rnd, at=20.0), Wait)


def test_a_reducer_whose_updates_reach_all_but_the_hosts_disk_is_replaced():
    rnd = closed(A, B, at=10)
    reduce_all(rnd, at=11)
    for peer, stop in [(A, 2), (B, 2), (E, 1)]:
        rounds.fetch(rnd, peer, fetched(0, stop), now=12)
    assert relieve(rnd, at=20.0) == Replace(frozenset({D}), SLOWER)
    assert isinstance(relieve(rnd, at=1e6, able=(A, B, C)), Wait), "it is not there"


def test_after_the_close_a_new_reducer_has_its_own_time_once_it_has_all_slices():
    rnd = closed(A, B, at=10, waited=(D,))
    rounds.reduce(rnd, C, reduced(0, version=rnd.roster_version), now=11)
    for peer in (A, B, E):
        rounds.fetch(rnd, peer, fetched(0, 1), now=12)
    rounds.reassign(rnd, (C, A), now=13)
    rounds.deliver(rnd, A, delivered(A, 1), now=14)
    assert isinstance(relieve(rnd, at=1e6), Wait), "it waits for what B delivers again"
    rounds.deliver(rnd, A, delivered(B, 1), now=30)
    rounds.deliver(rnd, A, delivered(D, 1), now=40)  # which is not in the roster
    assert isinstance(relieve(rnd, at=46.9), Wait)
    assert relieve(rnd, at=47.0) == Replace(frozenset({A}), SLOWER)  # 30, 2, and half of 30


def test_who_was_quick_before_the_close_shows_nobody_else_to_be_slow_after_it():
    rnd = expected(A, B, at=1)
    for peer in (A, B, E):
        rounds.fetch(rnd, peer, fetched(0, 1), now=2)
    for peer in (A, B):
        arrive(rnd, peer, at=50)
    assert not rounds.close(rnd, rnd.announced, now=50)
    assert isinstance(relieve(rnd, at=76.9), Wait)
    assert relieve(rnd, at=77.0) == Replace(frozenset({D}), SLOWER)  # 50, 2, and half of 50


def test_a_reducer_that_was_quick_enough_for_one_but_not_for_a_second_is_replaced():
    """The first updates of D came to the host just before its line broke down; D lacks those of C.

    So each update is at two members, but none of these but the host's own has all of them.
    """
    rnd = closed(A, C, D, at=10)
    reduce_all(rnd, at=11)
    for peer, start in [(C, 0), (D, 1), (E, 0), (E, 1), (A, 0)]:
        rounds.fetch(rnd, peer, fetched(start, start + 1), now=12)
    able = (A, C, D, E)
    assert isinstance(relieve(rnd, at=19.9, able=able), Wait)
    assert relieve(rnd, at=20.0, able=able) == Replace(frozenset({D}), SLOWER)
    rounds.fetch(rnd, A, fetched(1, 2), now=19)
    assert isinstance(relieve(rnd, at=20.0, able=able), Wait)


edges = st.sets(st.tuples(st.sampled_from((A, C, D, E)), st.sampled_from((C, D))))


@given(edges, st.sampled_from((C, D)), st.booleans())
def test_whose_line_breaks_down_after_the_close_does_not_hold_up_the_round(lucky, slow, has_anna):
    """What went over it before, by luck, is there; all that does not touch it is there, too."""
    able = (A, C, D, E) if has_anna else (C, D, E)
    rnd = closed(*able[:-1], at=10)
    version = reduce_all(rnd, at=11)
    has = {peer: set[int]() for peer in able}
    for peer, (k, reducer) in product(able, enumerate((C, D))):
        if slow not in (peer, reducer) or peer == reducer or (peer, reducer) in lucky:
            rounds.fetch(rnd, peer, fetched(k, k + 1), now=12)
            has[peer].add(k)
    for peer in (peer for peer in able if has[peer] == {0, 1}):
        rounds.hold(rnd, peer, held(version=version), now=12)
    due = decide(rnd, at=100, able=able)
    assert isinstance(due, Commit) or slow in (
        due.reducers if isinstance(due, Replace) else relieve(rnd, at=100, able=able).reducers
    )


def test_a_member_that_receives_slowly_is_no_fault_of_the_reducers():
    rnd = closed(A, B, at=10)
    rnd.usual_s = 1.0
    reduce_all(rnd, at=11)
    rounds.fetch(rnd, A, fetched(0, 2), now=12)  # but to the host's disk nothing comes
    assert isinstance(relieve(rnd, at=1e6), Wait)


def test_a_reducer_alone_is_measured_by_earlier_rounds():
    rnd = closed(A, B, at=10)
    rnd.assignment = (D, D)
    assert isinstance(relieve(rnd, at=1e6), Wait)
    rnd.usual_s = 2.0
    assert isinstance(relieve(rnd, at=19.9), Wait)
    assert relieve(rnd, at=20.0) == Replace(frozenset({D}), SLOWER)  # 12, and 2, and half of 12


@pytest.mark.parametrize("message", [fetched(0, 1, version=1), fetched(1, 1), fetched(0, 3)])
def test_what_was_fetched_of_another_roster_or_makes_no_sense_does_not_count(message):
    rnd = closed(A, B, at=10)
    rounds.fetch(rnd, A, message, now=12)
    assert not rnd.fetched_at


def test_where_a_slice_has_to_be_delivered_again_those_who_lack_it_speak_for_its_reducer():
    rnd = closed(A, B, at=1)
    rounds.reassign(rnd, (C, E), now=2)
    rounds.deliver(rnd, E, delivered(B, 1), now=3)
    rounds.complain(rnd, A, E)
    decision = decide(rnd, at=4)
    assert isinstance(decision, Replace)
    assert decision.reducers == {E}


def test_a_round_that_can_be_closed_is_whoever_complains():
    rnd = opened(A, B, C)
    for peer in (A, B):
        arrive(rnd, peer, at=10)
    claims(rnd, C, at=10)
    rounds.announce(rnd, roster_of(rnd, A, B, C), now=10)
    rounds.complain(rnd, C, D)
    assert isinstance(decide(rnd, at=16.9), Replace)
    assert decide(rnd, at=17.0) == Close((A, B), "the grace time is over, 1 missing")


def test_an_exchange_takes_from_the_last_claim_of_the_roster_to_the_commit():
    rnd = opened(A, B)
    for peer, at in ((A, 3), (B, 7)):
        arrive(rnd, peer, at=at)
    rounds.close(rnd, roster_of(rnd, A, B), now=8)
    assert rounds.exchange_s(rnd, now=10) == 3


def test_a_round_that_collects_again_has_no_updates():
    rnd = closed(A, B, at=1)
    version = reduce_all(rnd, at=1)
    rounds.hold(rnd, A, held(version=version), now=2)
    rounds.reopen(rnd)
    assert not any((rnd.reduced, rnd.reduced_at, rnd.parts, rnd.held, rnd.fetched_at))


def test_before_a_roster_is_announced_there_is_nothing_to_fetch():
    rnd = opened(A)
    rounds.fetch(rnd, A, fetched(0, 1, version=rnd.roster_version), now=1)
    assert not rnd.fetched_at


def test_who_holds_all_updates_has_fetched_each_and_for_another_roster_none():
    rnd = closed(A, B, at=10)
    rounds.hold(rnd, A, held(version=rnd.roster_version), now=12)
    assert rnd.fetched_at == {0: {A: 12}, 1: {A: 12}}
    rounds.close(rnd, roster_of(rnd, A), now=13)
    assert not rnd.fetched_at


def test_one_of_many_that_delivers_again_too_slowly_is_left_out():
    rnd = closed(A, B, C, at=10, opened_at=4)
    rounds.reassign(rnd, (C, E), now=12)
    for peer, at in ((A, 13), (B, 14)):
        rounds.deliver(rnd, E, delivered(peer, 1), now=at)
    rnd.progress_at = 20.8  # C trickles on
    assert decide(rnd, at=20.9) == WAITING
    expected = Close((A, B), "1 contributors were lost before the reduction")
    assert decide(rnd, at=21.0) == expected  # 14, when the quorum had, and 2 s, and half of 10


def test_when_updates_come_to_no_disk_for_too_long_their_reducers_are_replaced():
    rnd = closed(A, B, at=1)
    reduce_all(rnd, at=1)
    rounds.fetch(rnd, A, fetched(0, 1), now=1)
    rounds.fetch(rnd, B, fetched(0, 1), now=1)
    expected = Replace(frozenset({D}), "a reducer does not deliver what it should")
    assert decide(rnd, at=13.6) == expected
