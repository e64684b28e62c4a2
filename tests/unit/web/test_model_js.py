"""The page's own logic (static/model.js), in an engine without a browser."""

import json
import re
from importlib import resources
from random import Random

import pytest
from hypothesis import given, settings, strategies as st
from py_mini_racer import MiniRacer
from tests.unit.web.cast import Seen
from tests.unit.web.test_stream import live_a_little, parsed

from atoll.net import wire
from atoll.units import format_bytes, format_count, format_seconds
from atoll.web.stream import Publisher

SOURCE = resources.files("atoll.web").joinpath("static/model.js").read_text(encoding="utf-8")


class Script:
    """The module as a script, and a model in it."""

    def __init__(self):
        self.engine = MiniRacer()
        self.engine.eval(re.sub(r"(?m)^export ", "", SOURCE))
        self.engine.eval("var model = emptyModel();")

    def __call__(self, expression: str):
        """Return the value of an expression, as JSON has it."""
        return json.loads(self.engine.eval(f"JSON.stringify({expression}) ?? 'null'"))

    def hear(self, message: bytes):
        """Return which parts have changed; None: the page has to begin anew."""
        kind, news = parsed(message)
        parts = f"apply(model, {json.dumps(kind)}, {json.dumps(news)})"
        return self(f"((parts) => parts && [...parts].sort())({parts})")

    def watch(self, seen: Seen):
        self.hear(Publisher(seen.board.document).snapshot())


@pytest.fixture(scope="module")
def script():
    return Script()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_the_page_knows_what_the_board_shows(script, seed):
    rng, seen = Random(seed), Seen.new()
    publisher = Publisher(seen.board.document)
    script.hear(publisher.snapshot())
    for _ in range(20):
        live_a_little(seen, rng)
        if (message := publisher.delta()) is not None:
            assert script.hear(message), f"{seed=}"
    wanted = json.loads(json.dumps(seen.board.document()))
    shown = script("({...model, rounds: Object.fromEntries(model.rounds)})")
    assert shown["news"][-len(wanted["news"]) :] == wanted["news"], f"{seed=}"
    assert shown["rounds"].items() >= wanted["rounds"].items(), f"{seed=}"
    for part in ("run", "peers", "open", "curve", "health"):
        assert shown[part] == wanted[part], f"{seed=}"


def test_a_delta_that_was_missed_is_noticed(script):
    seen = Seen.new()
    (anna,) = seen.gather(1)
    publisher = Publisher(seen.board.document)
    script.hear(publisher.snapshot())
    seen.train(anna)
    publisher.delta()
    seen.lost(anna)
    assert script.hear(publisher.delta()) is None
    script.hear(publisher.snapshot())
    seen.train(anna, tokens_per_s=7.0)
    assert script.hear(publisher.delta()) is not None


# --- words and figures ---------------------------------------------------------------------------

VALUES = [0, 1, 7.3, 999, 1000, 1234, 999_940, 999_960, 5.6e6, 9.999e8, 1.1e9, 4.4e13]


@pytest.mark.parametrize("value", VALUES)
def test_numbers_read_as_on_the_terminal(script, value):
    assert script(f"count({value})") == format_count(value)
    assert script(f"bytes({value})") == format_bytes(value)
    if value < 1e9:
        assert script(f"duration({value})") == format_seconds(value)


def test_the_headline_follows_a_round(script):
    seen = Seen.new(min_peers=2)
    script.watch(seen)
    assert script("story(model)") == [
        "Waiting for the first round",
        "Nobody is here yet; a round begins with 2.",
    ]
    anna, ben = seen.gather(2)
    script.watch(seen)
    assert script("story(model)")[0] == "Round 1: 2 peers train"
    seen.says(ben, wire.Resting(rests=True))
    script.watch(seen)
    assert script("story(model)")[0] == "Round 1: 1 peer trains"
    seen.says(ben, wire.Resting(rests=False))
    seen.delivers(anna)
    script.watch(seen)
    assert script("story(model)") == [
        "Round 1: work comes in",
        "1 peer has not delivered all yet.",
    ]
    seen.delivers(ben)
    script.watch(seen)
    assert script("story(model)")[0] == "Round 1: one new model"
    assert script("figures(model)")[0][::2] == ["Loss", ""]


def test_a_complete_run_says_so(script):
    seen = Seen.new(rounds=1)
    seen.commit_round(*seen.gather(2))
    script.watch(seen)
    assert script("story(model)")[0] == "The run is complete"


@pytest.mark.parametrize("attempt", [0, 1, 3, 50])
def test_a_lost_host_is_looked_for_soon_and_by_all_at_other_times(script, attempt):
    delays = [script(f"retryDelay({attempt}, {chance})") for chance in (0, 0.5, 1)]
    assert 0.5 < delays[0] < delays[1] < delays[2] < 20


# --- pictures ------------------------------------------------------------------------------------


def test_the_ring_has_an_island_for_each_that_is_there_and_lines_only_to_reducers(script):
    seen = Seen.new()
    anna, ben, carol = seen.gather(3)
    seen.claims(anna)
    seen.train(anna, step=2)
    script.watch(seen)
    there = [island["number"] for island in script("islands(model)")]
    assert there == [0, 1, 2]
    reducers = {n for n, peer in enumerate(script("model.peers")) if peer["reduces"]}
    flows = script("flows(model, [0, 1, 2])")
    assert flows
    assert {kind for _, _, kind in flows} == {"contribution"}
    assert {source for source, _, _ in flows} == {0}
    assert {target for _, target, _ in flows} == reducers - {0}
    seen.lost(carol)
    seen.delivers(anna, ben)
    script.watch(seen)
    flows = script("flows(model, islands(model).map((island) => island.number))")
    assert {kind for _, _, kind in flows} <= {"update"}
    assert all(source != target for source, target, _ in flows)


def test_a_thousand_islands_lie_apart_and_within_the_picture(script):
    seen = Seen.new()
    seen.crowd(1000)
    script.watch(seen)
    islands = script("islands(model)")
    assert len(islands) == 1000
    assert len({(round(i["x"], 1), round(i["y"], 1)) for i in islands}) == 1000
    assert all(0 <= i["x"] <= 400 and 0 <= i["y"] <= 400 for i in islands)
    assert len(script("flows(model, islands(model).map((i) => i.number))")) <= 200


def test_speeds_are_tokens_by_the_time_between_commits(script):
    line = {"planned_at": 5, "committed_at": 10, "tokens": 100, "round": 1}
    lines = [line, {**line, "round": 2, "committed_at": 30}, {**line, "round": 4, "planned_at": 40}]
    lines[2]["committed_at"] = 50
    assert script(f"speeds(new Map({json.dumps([[each['round'], each] for each in lines])}))") == [
        [1, 20],
        [2, 5],
        [4, 10],
    ]


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_round_and_within_the_range(script, least, size, wanted):
    most = least + size
    found = script(f"ticks({least}, {most}, {wanted})")
    assert len(found) <= wanted + 1
    assert all(least - size * 1e-6 <= tick <= most + size * 1e-6 for tick in found)
    assert found == sorted(set(found))


def test_rows_are_sorted_and_found(script):
    seen = Seen.new()
    peers = seen.gather(3)
    for number, peer in enumerate(peers):
        seen.train(peer, tokens_per_s=100.0 * (number + 1))
    seen.lost(peers[2])
    script.watch(seen)
    by_speed = "sortedRows(model.peers, {key: 'tps', descending: true, filter: ''})"
    assert script(by_speed) == [1, 0, 2]
    found = "sortedRows(model.peers, {key: 'name', descending: false, filter: 'PEER-2'})"
    assert script(found) == [2]


def test_every_kind_of_record_is_said_in_words(script, seen):
    from atoll.net.records import decode

    for entry in seen.entries:
        words = script(f"recordText({entry.body.decode()}, new Map())")
        assert words, decode(entry.body)
