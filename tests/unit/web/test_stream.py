"""Whoever has the snapshot and applies the deltas knows what the board shows, within the budget."""

import asyncio
import json
from random import Random

import pytest
from hypothesis import given, settings, strategies as st
from tests.unit.virtual import run
from tests.unit.web.cast import Seen, peer_id

from atoll.web.stream import (
    BEAT_S,
    MAX_DELTA_BYTES,
    MAX_QUEUED,
    TICK_S,
    Publisher,
    Stream,
    changed,
)


def parsed(message: bytes):
    kind, _, rest = message.decode().partition("\n")
    assert kind.startswith("event: ")
    assert rest.startswith("data: ")
    assert rest.endswith("\n\n")
    return kind.removeprefix("event: "), json.loads(rest.removeprefix("data: "))


class Page:
    """What the page's own code does with the events (static/model.js), in a few lines."""

    def __init__(self):
        self.shown = None

    def hear(self, message: bytes):
        kind, news = parsed(message)
        if kind == "snapshot":
            self.shown = news
            self.shown["rounds"] = {line["round"]: line for line in news["rounds"]}
        elif kind == "delta":
            assert news["seq"] == self.shown["seq"] + 1
            self.apply(news)

    def apply(self, news):
        self.shown["seq"] = news["seq"]
        self.shown["run"] |= news.get("run", {})
        for line in news.get("rounds", []):
            self.shown["rounds"][line["round"]] = line
        for key in ("open", "health"):
            self.shown[key] = news.get(key, self.shown[key])
        self.shown["news"] += news.get("news", [])
        points = news.get("curve", {})
        self.shown["curve"] = points.get("all", self.shown["curve"] + points.get("add", []))
        for number, changes in news.get("peers", {}).items():
            while len(self.shown["peers"]) <= int(number):
                self.shown["peers"].append({})
            self.shown["peers"][int(number)] |= changes

    def shows(self, document) -> bool:
        wanted = json.loads(json.dumps(document))
        rounds = {int(key): line for key, line in wanted.pop("rounds").items()}
        news = wanted.pop("news")
        seen = {key: value for key, value in self.shown.items() if key in wanted}
        kept = {key: self.shown["rounds"].get(key) for key in rounds}
        return (seen, kept, self.shown["news"][-len(news) or None :]) == (wanted, rounds, news)


def live_a_little(seen: Seen, rng: Random) -> None:
    """Let one of the things happen that happen in a run."""
    members = [m.peer for m in seen.run.membership.connected() if m.trains]
    match rng.choice(["come", "go", "train", "train", "round", "pass"]):
        case "come":
            seen.gather(rng.randint(1, 3), start=len(seen.board.fold.peers))
        case "go" if members:
            seen.lost(rng.choice(members))
        case "train" if members:
            seen.train(rng.choice(members), tokens_per_s=rng.uniform(1, 1e6))
        case "round" if members and seen.run.round is not None:
            seen.delivers(*(p for p in members if p in seen.run.round.invited))
        case _:
            seen.passes(rng.uniform(0.1, 20.0))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_a_snapshot_and_the_deltas_are_what_the_board_shows(seed):
    rng, seen, page = Random(seed), Seen.new(), Page()
    publisher = Publisher(seen.board.document)
    page.hear(publisher.snapshot())
    for _ in range(30):
        live_a_little(seen, rng)
        if (message := publisher.delta()) is not None:
            page.hear(message)
        assert page.shows(seen.board.document()), f"{seed=}"
        late = Page()
        late.hear(publisher.snapshot())
        assert late.shows(seen.board.document()), f"{seed=}"


def test_with_a_thousand_peers_a_delta_keeps_its_size_and_what_matters_comes_first():
    seen = Seen.new()
    peers = seen.crowd(1000)
    page, publisher = Page(), Publisher(seen.board.document)
    page.hear(publisher.snapshot())
    sizes = []
    for second in range(1, 6):
        for number, peer in enumerate(peers):
            seen.train(peer, step=second, tokens_per_s=1000.0 * second + number)
        seen.lost(peers[-second])
        message = publisher.delta()
        sizes.append(len(message))
        page.hear(message)
        assert not page.shown["peers"][-second]["in"]
    assert max(sizes) <= MAX_DELTA_BYTES + 2_000
    while (message := publisher.delta()) is not None:  # nothing else happens: the rest follows
        page.hear(message)
    assert page.shows(seen.board.document())


def test_rows_that_change_all_the_time_have_their_turn():
    seen = Seen.new()
    peers = seen.crowd(1000)
    publisher = Publisher(seen.board.document)
    publisher.snapshot()
    heard = set()
    for second in range(1, 12):
        for number, peer in enumerate(peers):
            seen.train(peer, step=1, tokens_per_s=1e6 * second + 1e4 * number)
        _, news = parsed(publisher.delta())
        heard |= set(news["peers"])
    assert len(heard) == 1000


def test_a_row_that_is_larger_than_a_delta_comes_alone():
    seen = Seen.new()
    publisher = Publisher(seen.board.document)
    for number in range(2):
        seen.admit(peer_id(number), "x" * 2 * MAX_DELTA_BYTES)
    assert list(parsed(publisher.delta())[1]["peers"]) == ["0"]
    assert list(parsed(publisher.delta())[1]["peers"]) == ["1"]


def test_nothing_new_is_no_delta():
    seen = Seen.new()
    seen.gather(2)
    publisher = Publisher(seen.board.document)
    assert publisher.delta() is None


def test_a_change_to_nothing_is_a_change():
    assert changed({"a": 1}, {"a": None}) == {"a": None}
    assert changed({"a": None}, {"a": None}) == {}
    assert changed({}, {"a": None}) == {"a": None}


# --- viewers -------------------------------------------------------------------------------------


async def next_of(watching) -> tuple[str, dict]:
    return parsed(await anext(watching))


def served(test):
    """Run the test with a stream at work, in virtual time."""

    async def main():
        seen = Seen.new()
        seen.gather(3)
        stream = Stream(seen.board)
        task = asyncio.create_task(stream.run())
        try:
            await test(seen, stream)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_a_viewer_hears_of_an_event_within_a_second():
    async def test(seen, stream):
        watching = stream.watch()
        assert (await next_of(watching))[0] == "snapshot"
        loop = asyncio.get_running_loop()
        seen.train(next(iter(seen.board.fold.peers)), tokens_per_s=777.0)
        happened_at = loop.time()
        kind, news = await next_of(watching)
        assert kind == "delta"
        assert news["peers"]["0"]["tps"] == 777.0
        assert loop.time() - happened_at <= TICK_S <= 1.0
        await watching.aclose()

    served(test)


def test_without_news_there_is_a_sign_of_life():
    async def test(seen, stream):
        watching = stream.watch()
        await anext(watching)
        assert (await next_of(watching))[0] == "beat"
        assert asyncio.get_running_loop().time() <= BEAT_S + 2 * TICK_S
        await watching.aclose()

    served(test)


def test_a_viewer_that_does_not_keep_up_gets_a_snapshot_and_costs_no_memory():
    async def test(seen, stream):
        peer = next(iter(seen.board.fold.peers))
        slow, fast = stream.watch(), stream.watch()
        slow_page, fast_page = Page(), Page()
        slow_page.hear(await anext(slow))
        fast_page.hear(await anext(fast))
        for number in range(5 * MAX_QUEUED):
            seen.train(peer, tokens_per_s=10.0 + number)
            fast_page.hear(await anext(fast))
        kinds = []
        while not slow_page.shows(seen.board.document()):
            message = await anext(slow)
            kinds.append(parsed(message)[0])
            slow_page.hear(message)
        assert kinds == ["snapshot"]
        seen.train(peer, tokens_per_s=5.0)
        slow_page.hear(await anext(slow))
        assert slow_page.shows(seen.board.document())
        await slow.aclose()
        await fast.aclose()

    served(test)


def test_the_host_says_good_bye():
    async def main():
        seen = Seen.new()
        seen.gather(1)
        stream = Stream(seen.board)
        task = asyncio.create_task(stream.run())
        watching = stream.watch()
        await anext(watching)
        waiting = asyncio.create_task(anext(watching))
        await asyncio.sleep(0)
        task.cancel()
        assert (await waiting)[:10] == b"event: end"
        with pytest.raises(StopAsyncIteration):
            await anext(watching)
        assert stream.num_viewers == 0

    run(main())
