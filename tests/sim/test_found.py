"""What random scripts have found in the code, cut down to what it takes, and played again."""

from itertools import pairwise

from tests.sim.cast import well

from atoll.events import RoundCommitted
from atoll.sim.faults import (
    AtTime,
    Crash,
    Cut,
    DiskFull,
    Freeze,
    InRound,
    Leave,
    OnMessage,
    Pause,
    Slow,
    TrainerHang,
)
from atoll.sim.play import Case
from atoll.sim.setting import BUILT_IN, HOST, PeerSpec, RunSpec, Setting


def test_work_that_is_done_again_while_it_is_committed_counts_once(tmp_path):
    """Dora is stopped with a contribution under way, and is back, training on the same leases,
    when the round takes it in. What she has trained anew stayed in her weights once more.
    """
    well(
        Case(
            setting=Setting(
                seed=9,
                peers=(
                    PeerSpec(name="ben", step_s=1.5),
                    PeerSpec(name="dora", step_s=0.5, joins_at_s=0.5),
                ),
                run=RunSpec(fragments=2, quorum=1.0, vocab_size=512),
            ),
            script=(Leave(when=AtTime(7.393), who="dora", back_s=0.1),),
        ),
        tmp_path,
    )


def test_work_that_was_dropped_is_not_taken_off_the_model(tmp_path):
    """Ben is cut off for so long that he starts over, from the state before a commit of his own.

    The snapshot still held the work of that commit, which his weights did not any more.
    """
    well(
        Case(
            setting=Setting(
                seed=34,
                peers=(
                    PeerSpec(name="anna", link="intercontinental", step_s=5.0, joins_at_s=5.0),
                    PeerSpec(name="ben", link="datacenter", step_s=0.5, joins_at_s=20.0),
                ),
                run=RunSpec(mode="overlap", quorum=0.5, vocab_size=512),
            ),
            script=(
                Cut(when=AtTime(36.052), one="ben", other=HOST, seconds=80.0),
                TrainerHang(when=InRound(round=4, after_s=6.816), who="anna"),
            ),
        ),
        tmp_path,
    )


def test_a_line_that_breaks_between_a_commit_and_its_outer_step_costs_no_work(tmp_path):
    """Anna has heard of the commit, but says hello with the state before it.

    The host then named the lease that it settles as hers, which she took for a loss of her work.
    """
    outcome = well(
        Case(
            setting=Setting(
                seed=116,
                peers=(
                    PeerSpec(name="anna", link="lte", step_s=0.5),
                    PeerSpec(name="ben", link="home-dsl", step_s=5.0),
                ),
                run=RunSpec(rounds=3, mode="overlap", quorum=1.0, vocab_size=2048),
            ),
            script=(
                Crash(when=OnMessage("Commit", sender=HOST, receiver="anna"), who=HOST, back_s=1.0),
            ),
        ),
        tmp_path,
    )
    (trained,) = outcome.fleet.devices["anna"].lives
    assert len(trained) == len(set(trained))


def test_a_member_that_lacks_the_end_finds_a_host_that_was_started_again(tmp_path):
    """The host ends just after it has said that the run is complete, and comes back.

    Whoever lacked the last updates did not look for it any more, and it did not wait for them.
    """
    outcome = well(
        Case(
            setting=Setting(
                seed=205,
                peers=(
                    PeerSpec(name="anna"),
                    PeerSpec(name="ben", link="lte", step_s=20.0),
                ),
                run=RunSpec(rounds=2, quorum=0.5, vocab_size=8192),
            ),
            script=(
                Crash(when=OnMessage("Stop", sender=HOST, receiver="ben"), who=HOST, back_s=80.0),
            ),
        ),
        tmp_path,
    )
    assert outcome.fleet.members["ben"].ends == [""]


def test_the_host_ends_with_the_last_state_in_its_directory(tmp_path):
    """The built-in member dies with the last commit, and comes back."""
    outcome = well(
        Case(
            setting=Setting(seed=36, peers=(PeerSpec(name="anna"), PeerSpec(name="ben"))),
            script=(
                DiskFull(
                    when=OnMessage("Commit", count=6, receiver=HOST), who=BUILT_IN, seconds=20.0
                ),
            ),
        ),
        tmp_path,
    )
    assert outcome.fleet.members[BUILT_IN].ends[-1] == ""
    assert (outcome.fleet.home(BUILT_IN) / "states" / "000006").is_dir()


def test_a_slow_hour_does_not_make_a_hung_trainer_last(tmp_path):
    """Ben's machine has company for a while, and his trainer hangs later, while all wait for him.

    His patience with it was thirty times the slowest step that there ever was.
    """
    well(
        Case(
            setting=Setting(
                seed=5051,
                peers=(
                    PeerSpec(name="anna", link="lte", step_s=1.5, joins_at_s=0.5),
                    PeerSpec(name="ben", step_s=5.0),
                    PeerSpec(name="carl", step_s=0.5),
                ),
                run=RunSpec(quorum=1.0, vocab_size=2048),
            ),
            script=(
                Slow(when=InRound(round=1, after_s=0.449), who="ben", factor=5.0, seconds=8.0),
                TrainerHang(when=AtTime(52.391), who="ben"),
            ),
        ),
        tmp_path,
    )


def test_what_is_claimed_while_the_roster_stands_counts_when_it_does_not(tmp_path):
    """Ben and Anna die with work in the second round's roster, and train it again.

    What they then claimed was not heard, since the roster had them. It was given up for what nobody
    had any more, and so was the round after it, whose contributions nobody claimed a second time.
    """
    outcome = well(
        Case(
            setting=Setting(
                seed=9135,
                peers=(
                    PeerSpec(name="anna", link="datacenter"),
                    PeerSpec(name="ben", step_s=0.5),
                    PeerSpec(name="carl", link="home-dsl", step_s=5.0),
                ),
                run=RunSpec(
                    rounds=4,
                    mode="overlap",
                    fragments=2,
                    in_flight=2,
                    region_size=2,
                    vocab_size=2048,
                ),
            ),
            script=(
                Crash(when=InRound(round=2, after_s=2.323), who="ben", back_s=3.0, power=False),
                Crash(
                    when=OnMessage("FetchUpdates", count=3, sender="carl"),
                    who="anna",
                    back_s=8.0,
                    power=False,
                ),
            ),
        ),
        tmp_path,
    )
    times = [at for at, _, event in outcome.trace if isinstance(event, RoundCommitted)]
    assert max(b - a for a, b in pairwise(times)) < 20, "ben's new claim says that his work is lost"


def test_connections_without_a_use_are_closed_by_one_task_alone(tmp_path):
    """Two of Carl's tasks look for a connection at once, when others have had no use for long."""
    well(
        Case(
            setting=Setting(
                seed=118,
                peers=(
                    PeerSpec(name="anna", link="intercontinental", step_s=5.0),
                    PeerSpec(name="ben", link="lte", joins_at_s=20.0),
                    PeerSpec(name="carl", link="lte"),
                    PeerSpec(name="dora", step_s=0.5),
                    PeerSpec(name="emil", link="datacenter", step_s=0.5, joins_at_s=0.5),
                ),
                run=RunSpec(rounds=4, quorum=0.5, region_size=1),
            ),
            script=(
                DiskFull(when=OnMessage("Held", count=8, receiver=HOST), who="dora", seconds=0.1),
                Crash(when=AtTime(26.302), who="ben", back_s=8.0, power=False),
            ),
        ),
        tmp_path,
    )


def test_who_ends_because_nothing_could_be_written_is_started_when_there_is_room(tmp_path):
    """The host's disk is full for a moment, and has room before the host has said goodbye to all.

    In the script's world nobody started it again.
    """
    outcome = well(
        Case(
            setting=Setting(
                seed=22010,
                peers=(PeerSpec(name="anna", link="home-dsl", step_s=0.5), PeerSpec(name="ben")),
                run=RunSpec(mode="overlap", fragments=2, in_flight=2, quorum=0.5),
            ),
            script=(
                DiskFull(when=OnMessage("AtState", count=3, sender=HOST), who=HOST, seconds=0.05),
            ),
        ),
        tmp_path,
    )
    assert [end.partition(":")[0] for end in outcome.fleet.host.ends] == ["RunError", ""]


def test_who_is_far_behind_when_the_run_is_complete_still_comes_to_its_end(tmp_path):
    """Ben's trainer hangs while the other one makes all rounds: more than updates are kept of.

    He asked for a newer state, which waited for nothing once the run was complete, over and over:
    so nothing else of his ever had its turn.
    """
    outcome = well(
        Case(
            setting=Setting(
                seed=43002,
                peers=tuple(PeerSpec(name=name, link="datacenter") for name in ("anna", "ben")),
                run=RunSpec(rounds=14, inner_steps=1, quorum=0.5),
            ),
            script=(TrainerHang(when=InRound(round=2, after_s=0.1), who="ben"),),
        ),
        tmp_path,
    )
    assert outcome.rosters()[-1] == ["anna"]


def test_a_host_that_was_frozen_has_not_the_last_word_on_who_is_a_member(tmp_path):
    """Another host leads, and has admitted emil. Reef thaws, has not heard of it, and is asked."""
    well(
        Case(
            setting=Setting(
                seed=61074,
                peers=(
                    PeerSpec(name="anna", step_s=0.5, joins_at_s=5.0),
                    PeerSpec(name="ben", joins_at_s=5.0),
                    PeerSpec(name="carl", link="datacenter"),
                    PeerSpec(name="dora", step_s=5.0, joins_at_s=5.0),
                    PeerSpec(name="emil", step_s=1.5, joins_at_s=20.0),
                ),
                run=RunSpec(
                    inner_steps=6,
                    pace="time",
                    mode="overlap",
                    fragments=3,
                    in_flight=3,
                    region_size=2,
                    vocab_size=2048,
                ),
                far_journal=True,
                standby=True,
            ),
            script=(
                Pause(when=InRound(round=1, after_s=6.402), who="dora", seconds=40.0),
                Leave(when=InRound(round=1, after_s=2.734), who="carl", back_s=80.0, in_order=True),
                Cut(when=InRound(round=5, after_s=1.068), one="reef", other="ledger", seconds=3.0),
                Freeze(
                    when=OnMessage("Heartbeat", count=5, sender="carl", receiver="reef"),
                    who="reef",
                    seconds=40.0,
                ),
            ),
        ),
        tmp_path,
    )
