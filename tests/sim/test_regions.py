"""A run that is divided into regions, under faults of those who add up: all ends in one state.

Six peers in three regions of two, two groups above them, and the root. Who reduces what in the
round of the fault is read off the same run without it, which is the same up to there.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.sim.cast import well

from atoll.ids import Digest
from atoll.net.records import Committed
from atoll.net.wire import Message, Reduce, Update
from atoll.sim.faults import NEVER, Crash, Cut, Fault, Freeze, InRound, OnMessage, Slow, Tamper
from atoll.sim.fleet import Fleet
from atoll.sim.network import Machine
from atoll.sim.play import Case, play
from atoll.sim.setting import PeerSpec, RunSpec, Setting

ROUND = 2
NUM_REGIONS, SIZE = 3, 2
NUM_PEERS = NUM_REGIONS * SIZE
RUN = RunSpec(rounds=3, region_size=SIZE, vocab_size=2048, min_peers=NUM_PEERS - 2)
PEERS = tuple(
    PeerSpec(name=f"peer-{n}", link=("home-fibre", "datacenter", "home-dsl")[n % 3], step_s=1.0)
    for n in range(NUM_PEERS)
)
REGIONS = tuple(range(NUM_REGIONS))
ABOVE, ABOVE_TOO, ROOT = (
    3,
    4,
    None,
)  # above regions 0 and 1; above 2; what the root has for its group
PARENTS = {0: ABOVE, 1: ABOVE, 2: ABOVE_TOO, ABOVE: ROOT, ABOVE_TOO: ROOT}


@dataclass
class Watched:
    """Who was asked to form the sums of which group, and who contributed, in the round."""

    reducers: dict[int | None, set[str]] = field(default_factory=dict)
    members: dict[int, list[str]] = field(default_factory=dict)
    said: Counter[tuple[str, str]] = field(default_factory=Counter)  # up to the end of the round
    updates: dict[tuple[str, str], list[Digest]] = field(default_factory=dict)  # and partial sums
    partials: tuple[tuple[Digest, ...], ...] = ()  # group by group

    def look(self, fleet: Fleet) -> None:
        tamper = fleet.network.tamper
        names = {fleet.peer_id(name): name for name in fleet.devices}

        def watch(sender: Machine, receiver: Machine, message: Message):
            if getattr(message, "round", 0) <= ROUND:
                self.said[type(message).__name__, sender.name] += 1
            if isinstance(message, Update):
                self.updates.setdefault((sender.name, receiver.name), []).append(message.digest)
            if isinstance(message, Reduce) and message.round == ROUND:
                self.reducers.setdefault(message.group, set()).add(receiver.name)
                if message.inputs and message.group is not None:
                    self.members[message.group] = [names[one.peer] for one in message.inputs]
            return tamper(sender, receiver, message)

        fleet.network.tamper = watch


@cache
def undisturbed() -> Watched:
    watched = Watched()
    with TemporaryDirectory() as directory:
        outcome, wrong = play(case(), Path(directory), look=watched.look)
    assert wrong == []
    assert {entry.region for entry in outcome.commits[-1].roster} == set(range(NUM_REGIONS))
    watched.partials = the_round(outcome).partials
    return watched


def case(*script: Fault) -> Case:
    # A seed whose ids make three regions of two; nothing else is to decide who is in which.
    setting = Setting(seed=6, peers=PEERS, run=RUN, tells_round_trips=False)
    return Case(setting=setting, script=script)


def reducer(group: int | None) -> str:
    return min(undisturbed().reducers[group])


def said(kind: str, who: str) -> int:
    """Return how many such messages it has sent when the round is over."""
    return undisturbed().said[kind, who]


def passed_on(*groups: int) -> OnMessage:
    """Return when a partial sum of one of these groups goes to another peer, which adds it up.

    Of its first slice: the others are zero, so their sums are like those of any group.
    """
    run = undisturbed()
    for group, ((sender, receiver), sent) in product(groups, run.updates.items()):
        digest = run.partials[group][0]
        forms, adds_up = run.reducers[group], run.reducers[PARENTS[group]]
        if digest in sent and sender in forms and receiver in adds_up:
            count = sent.index(digest) + 1
            return OnMessage("Update", count=count, sender=sender, receiver=receiver)
    raise AssertionError(f"each sum is added up where it is formed: {run.reducers}")


def the_round(outcome) -> Committed:
    (commit,) = [commit for commit in outcome.commits if commit.round == ROUND]
    return commit


@pytest.mark.parametrize("group", [1, ABOVE, ROOT], ids=["region", "above", "root"])
@pytest.mark.parametrize("kind", ["Delivered", "Reduced"])
def test_a_reducer_dies_before_and_after_its_sums(kind, group, tmp_path):
    """All that it has taken in is there, or all that it forms is formed, as it dies."""
    who = reducer(group)
    dies = Crash(when=OnMessage(kind, count=said(kind, who)), who=who, back_s=20.0)
    outcome = well(case(dies), tmp_path)
    assert len(the_round(outcome).roster) >= NUM_PEERS - 1


@pytest.mark.parametrize("group", [1, ROOT], ids=["region", "root"])
def test_a_reducer_freezes(group, tmp_path):
    """The others need not wait for its region: they close after the grace time, without it."""
    who = reducer(group)
    when = OnMessage("Delivered", count=said("Delivered", who), sender=who)
    outcome = well(case(Freeze(when=when, who=who, seconds=90.0)), tmp_path)
    assert len(the_round(outcome).roster) >= NUM_PEERS - SIZE


@pytest.mark.parametrize("group", [1, ROOT], ids=["region", "root"])
def test_a_slow_reducer_ends_the_round_no_later_than_it_must(group, tmp_path):
    slow = Slow(when=InRound(ROUND, 1.0), who=reducer(group), factor=200.0, seconds=60.0)
    outcome = well(case(slow), tmp_path)
    assert len(the_round(outcome).roster) >= NUM_PEERS - SIZE


def test_whoever_adds_up_cannot_reach_a_region(tmp_path):
    passed = passed_on(*REGIONS)
    cut = Cut(when=InRound(ROUND, 1.0), one=passed.sender, other=passed.receiver, seconds=60.0)
    outcome = well(case(cut), tmp_path)
    assert len(the_round(outcome).roster) == NUM_PEERS


@pytest.mark.parametrize("groups", [REGIONS, (ABOVE, ABOVE_TOO)], ids=["region", "above"])
def test_a_partial_sum_is_damaged_on_its_way(groups, tmp_path):
    """Whoever adds it up notices, and fetches it anew: from another one, who forms it once more."""
    damage = Tamper(when=passed_on(*groups), harm="corrupt")
    outcome = well(case(damage), tmp_path)
    assert outcome.happened == [damage]
    assert len(the_round(outcome).roster) == NUM_PEERS
    assert the_round(outcome).partials == undisturbed().partials


def test_a_contributor_is_lost_for_good_with_one_slice_missing(tmp_path):
    """It is not in the roster, and so in nobody's sums: its region's reducer does without it."""
    (who,) = (name for name in undisturbed().members[0] if name != reducer(0))
    last = OnMessage("Slice", count=said("Slice", who), sender=who)
    outcome = well(case(Crash(when=last, who=who, back_s=NEVER)), tmp_path)
    assert len(the_round(outcome).roster) == NUM_PEERS - 1


def test_contributor_and_reducer_of_a_region_are_lost_after_the_close(tmp_path):
    """What it delivered is gone with the reducer: the round closes again, and all sums are void."""
    who = reducer(1)
    (other,) = (name for name in undisturbed().members[1] if name != who)
    when = OnMessage("Delivered", count=said("Delivered", who), sender=who)
    script = (Crash(when=when, who=one, back_s=NEVER) for one in (who, other))
    outcome = well(case(*script), tmp_path)
    assert len(the_round(outcome).roster) == NUM_PEERS - 2
    assert {entry.region for entry in the_round(outcome).roster} == {0, 2}
    assert [len(digests) > 0 for digests in the_round(outcome).partials] == [
        *(True, False, True),
        *(True, True),
    ]
