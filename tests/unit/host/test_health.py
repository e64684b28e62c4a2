"""What is wrong is said in words, and nothing is said when nothing is wrong."""

from tests.unit.host.scene import BUILT_IN
from tests.unit.web.cast import Seen

from atoll.config import SyncConfig
from atoll.host import operate
from atoll.host.health import LEFT_S
from atoll.net import wire


def texts(seen, *, later_s=0.0):
    from atoll.host.health import concerns

    view, board = seen.board.catch_up(), seen.board
    found = concerns(
        view, board.live(), board.rounds, sync=seen.run.config.sync, at=1000 + seen.now + later_s
    )
    return [(concern.severity, concern.text) for concern in found]


def test_a_run_that_goes_well_has_no_concerns():
    seen = Seen.new()
    peers = seen.gather(3)
    for _ in range(6):
        seen.commit_round(*peers)
        seen.passes(3.0)
    assert texts(seen) == []


def test_too_few_peers():
    seen = Seen.new(min_peers=3)
    seen.gather(1)
    assert texts(seen) == [("note", "1 peer is here: a round begins with 3.")]


def test_a_paused_run_says_so_and_that_everybody_has_left_meanwhile():
    seen = Seen.new(min_peers=2)
    peers = seen.gather(2)
    seen.note(operate.pause(seen.run, now=seen.now))
    seen.commit_round(*peers)
    for peer in peers:
        seen.says(peer, wire.Leaving(reason="it left"))
    found = texts(seen)
    assert found[0] == ("warning", "Nobody is here: a round begins with 2.")
    assert ("note", "The operator has paused the run: no new round begins.") in found


def test_a_run_that_everybody_has_left():
    seen = Seen.new()
    (anna,) = seen.gather(1)
    seen.lost(anna)
    severities = {text: severity for severity, text in texts(seen)}
    assert severities["Nobody trains: the open round waits."] == "alarm"
    assert texts(seen)[0][0] == "alarm"


def test_the_built_in_member_is_missed():
    seen = Seen.new()
    seen.gather(2)
    seen.lost(BUILT_IN)
    assert any("built-in member is not there" in text for _, text in texts(seen))


def test_a_round_that_takes_much_longer_than_usual_names_whom_it_waits_for():
    seen = Seen.new(quorum=1.0)
    anna, ben = seen.gather(2)
    for _ in range(3):
        seen.passes(10.0)
        seen.commit_round(anna, ben)
        seen.passes(3.0)
    seen.delivers(anna)
    for _ in range(10):
        seen.passes(9.0)
    assert any("it waits for peer-1" in text for _, text in texts(seen))


def test_somebody_who_left_is_news_for_a_while():
    seen = Seen.new()
    anna, _ = seen.gather(2)
    seen.says(anna, wire.Leaving(reason="it left"))
    assert ("note", "peer-0 is gone: it left.") in texts(seen)
    assert texts(seen, later_s=LEFT_S + 1) == []


def test_who_is_often_late_is_named():
    seen = Seen.new(grace_floor_s=1.0, quorum=0.5)
    anna, _ = seen.gather(2)
    for _ in range(5):
        seen.delivers(anna)
        for _ in range(8):
            seen.passes(5.0)
        seen.commits(BUILT_IN, anna)
        for member in list(seen.run.membership.connected()):
            seen.at_state(member.peer, seen.run.committed)
        seen.passes(3.0)
    assert any(text.startswith("Often late: peer-1.") for _, text in texts(seen))


def test_a_complete_run_is_complete():
    seen = Seen.of(SyncConfig(rounds=1, inner_steps=2))
    peers = seen.gather(2)
    seen.commit_round(*peers)
    assert texts(seen) == [("note", "The run is complete.")]


def test_few_of_many_can_be_dialled():
    for num_able, expected in (
        (0, "None of 4 peers can be dialled: the host's built-in member averages for all of them."),
        (1, "1 of 4 peers can be dialled: one averages for all of them."),
        (2, "2 of 4 peers can be dialled: only 2 average for all of them."),
        (4, None),
    ):
        seen = Seen.new(region_size=2, min_peers=4)
        seen.gather(4, num_able=num_able)
        assert texts(seen) == ([("warning", expected)] if expected else [])
