"""What the page shows equals the journal, the events and the host's own state."""

import msgspec
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, hello
from tests.unit.web.cast import Seen

from atoll import events
from atoll.host import run as decisions
from atoll.host.effects import Append, Report
from atoll.host.membership import Member
from atoll.ids import RoundId
from atoll.net import wire
from atoll.net.records import Committed, Evaluated
from atoll.web.board import CURVE_POINTS, curve
from atoll.web.metrics import render
from atoll.web.stream import Publisher


def row(seen, number):
    return seen.board.document()["peers"][number]


def test_before_anybody_has_come_there_is_a_page_all_the_same():
    document = Seen.new(min_peers=2).board.document()
    assert (document["peers"], document["rounds"], document["curve"]) == ([], {}, [])
    assert document["run"]["rounds"] == 50
    assert "Nobody is here: a round begins with 2." in [c["text"] for c in document["health"]]


def test_a_round_is_seen_from_its_plan_to_the_agreed_state():
    seen = Seen.new()
    anna, ben = seen.gather(2)
    (opened,) = seen.board.document()["open"]
    assert (opened["round"], opened["phase"], opened["num_waited_for"]) == (1, "train", 2)
    seen.delivers(anna)
    (opened,) = seen.board.document()["open"]
    assert (opened["phase"], opened["num_waited_for"]) == ("exchange", 1)
    assert row(seen, 0)["arrived"] == 1.0
    seen.commit_round(ben)
    document = seen.board.document()
    line, (record,) = document["rounds"][1], seen.recorded(Committed)
    tokens = sum(entry.num_tokens for entry in record.roster)
    assert (line["num_in"], line["missing"], line["tokens"]) == (2, [], tokens)
    assert line["planned_at"] <= line["closed_at"] <= line["committed_at"] <= line["agreed_at"]
    assert document["run"]["committed"] == 1
    assert document["run"]["agreed_state"] == seen.run.agreed[1]
    assert line["state"] == seen.run.agreed[1][:24]
    assert [point[:2] for point in document["curve"]] == [(1, tokens)]
    assert sum(peer["tokens"] for peer in document["peers"]) == document["run"]["num_tokens"]


def test_who_was_late_is_named_with_the_reason():
    seen = Seen.new(grace_floor_s=1.0, quorum=0.5)
    anna, ben = seen.gather(2)
    seen.delivers(anna)
    seen.passes(50.0)
    seen.passes(50.0)
    seen.commits(BUILT_IN, anna)
    line = seen.board.document()["rounds"][1]
    assert (line["missing"], line["num_missing"], line["num_in"]) == ([1], 1, 1)
    assert line["reason"]
    assert (row(seen, 0)["missed"], row(seen, 1)["missed"]) == (0, 1)
    assert any("without peer-1" in news["text"] for news in seen.board.document()["news"])
    assert ben in seen.board.rounds[0].missing


def test_who_is_gone_is_gone_on_the_page_and_says_why():
    seen = Seen.new()
    anna, _ = seen.gather(2)
    assert (row(seen, 0)["in"], row(seen, 0)["doing"]) == (True, "training")
    seen.lost(anna)
    assert (row(seen, 0)["in"], row(seen, 0)["doing"]) == (False, "away")
    assert row(seen, 0)["left"] == "its connection ended"
    texts = [concern["text"] for concern in seen.board.document()["health"]]
    assert "Cut off for now: peer-0." in texts
    seen.passes(40.0)
    seen.tick()
    assert row(seen, 0)["doing"] == "gone"


def test_who_is_paused_by_its_owner_is_so_on_the_page():
    seen = Seen.new()
    anna, ben = seen.gather(2)
    for peer in (anna, ben):
        seen.train(peer, tokens_per_s=100.0)
    seen.says(anna, wire.Resting(rests=True))
    assert (row(seen, 0)["in"], row(seen, 0)["doing"], row(seen, 0)["tps"]) == (True, "paused", 0)
    assert seen.board.catch_up().tokens_per_s == 100.0
    assert [member.rests for member in seen.board.live().members] == [True, False]
    assert seen.board.document()["news"][-1]["text"] == "peer-0 is paused: no round waits for it"
    seen.says(anna, wire.Resting(rests=False))
    assert row(seen, 0)["doing"] == "training"


def test_who_reads_along_is_no_peer_that_is_in():
    seen = Seen.new()
    _, ben = seen.gather(2)
    seen.lost(ben)
    reads = replace(hello(ben), trains=False)
    seen.note(decisions.on_hello(seen.run, Member.of(ben, reads), reads, now=seen.now))
    seen.probed(ben)
    seen.at_state(ben)
    line = seen.board.document()["run"]
    assert (row(seen, 1)["doing"], row(seen, 1)["in"]) == ("reads along", False)
    assert (line["num_in"], line["num_ever"]) == (1, 1)


def test_where_a_peer_says_it_is():
    seen = Seen.new()
    anna, _ = seen.gather(2)
    seen.lost(anna)
    back = replace(hello(anna), name="peer-0", place="Lisbon\x1b[2J")
    seen.note(decisions.on_hello(seen.run, Member.of(anna, back), back, now=seen.now))
    seen.probed(anna)
    seen.at_state(anna)
    assert (row(seen, 0)["place"], row(seen, 1)["place"]) == ("Lisbon [2J", "")
    assert seen.board.document()["news"][-1]["text"].startswith("peer-0 joined from Lisbon [2J")


def test_utilisation_is_the_share_of_the_time_that_a_peer_trained():
    seen = Seen.new()
    anna, ben = seen.gather(2)
    tokens = 2 * 2 * 128  # steps, samples, length
    for _ in range(4):
        seen.train(anna, tokens_per_s=tokens / 5.0)
        seen.train(ben, tokens_per_s=tokens / 10.0)
        seen.passes(10.0)
        seen.commit_round(anna, ben)
    assert (row(seen, 0)["utilisation"], row(seen, 1)["utilisation"]) == (0.5, 1.0)


def test_a_state_that_differs_is_marked_until_it_is_agreed_again():
    seen = Seen.new()
    anna, ben, carol = seen.gather(3)
    seen.delivers(anna, ben, carol)
    seen.commits(BUILT_IN, anna)
    for peer in (BUILT_IN, anna, ben):
        seen.at_state(peer, 1)
    seen.at_state(carol, 1, of="carol")
    assert [row(seen, k)["differs"] for k in range(3)] == [False, False, True]
    assert any("peer-2 holds another state" in c["text"] for c in seen.board.document()["health"])
    assert (row(seen, 2)["doing"], row(seen, 0)["agrees"]) == ("catching up", True)
    seen.at_state(carol, 1)
    assert (row(seen, 2)["agrees"], row(seen, 2)["differs"]) == (True, False)


def test_nothing_in_the_document_is_an_address_or_a_token():
    seen = Seen.new()
    anna, ben = seen.gather(2)
    seen.commit_round(anna, ben)
    text = msgspec.json.encode(seen.board.document()).decode()
    assert '"host"' not in text
    assert 'token"' not in text


def test_a_long_curve_is_one_of_means_that_ends_where_the_run_is():
    losses = [float(number) for number in range(10 * CURVE_POINTS + 3)]
    tokens = [100 * (number + 1) for number in range(len(losses))]
    points = curve(tokens, losses)
    assert len(points) <= CURVE_POINTS
    assert points[-1][:2] == (len(losses), tokens[-1])
    assert [point[0] for point in points] == sorted({point[0] for point in points})
    assert points[0] == (11, tokens[10], 5.0)


def test_what_the_host_reported_before_it_was_started_again_is_news():
    seen = Seen.new()
    anna, ben = seen.gather(2)
    seen.commit_round(anna, ben)
    before = list(seen.board.news)
    assert [news.id for news in before] == list(range(1, len(before) + 1))
    assert {"peer-0 joined (cpu)"} <= {news.text for news in before}


def test_what_a_peer_says_of_a_state_is_seen_with_its_text():
    seen = Seen.new()
    peer, other = seen.gather(2)
    seen.commit_round(peer, other)
    before = Publisher(seen.board.document)
    record = Evaluated(
        round=RoundId(1), state=seen.run.agreed[1], peer=peer, loss=3.25, text="The <b>reef</b>"
    )
    seen.note([Append((record,)), Report(events.Evaluated(round=1, peer=peer, loss=3.25, text=""))])
    document = seen.board.document()
    tokens = document["run"]["num_tokens"]
    assert document["checks"] == [(1, tokens, 3.25)]
    assert document["run"]["sample"] == "The <b>reef</b>"
    assert document["news"][-1]["text"] == "state 1: validation loss 3.250, says peer-0"
    delta = before.delta()
    assert b'"checks":[[1,' in delta
    assert b"atoll_validation_loss 3.25\n" in render(seen.board.catch_up(), seen.board.live())
