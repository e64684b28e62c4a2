"""Every answer is what the journal says, in the form that the description promises."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from atoll.config import RunConfig
from atoll.host.live import Live
from atoll.host.overview import Overview
from atoll.net.records import NO_HASH, decode, entry_hash
from atoll.web import api
from atoll.web.api import MAX_ENTRIES, Health, Rounds
from atoll.web.openapi import READS, description

KINDS = {"/api/v1/overview": Overview, "/api/v1/live": Live, "/api/v1/health": Health}


@pytest.mark.parametrize(("path", "kind"), KINDS.items())
def test_an_answer_is_the_struct_that_it_is_described_as(client, path, kind):
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    msgspec.json.decode(answer.content, type=kind)


def test_the_overview_is_that_of_the_command_line(client, seen):
    answer = client.get("/api/v1/overview").json()
    assert answer == json.loads(msgspec.json.encode(seen.board.catch_up()))
    assert (answer["committed"], len(answer["losses"]), len(answer["peers"])) == (2, 2, 3)


def test_the_config_is_the_one_that_the_run_is_named_by(client, seen):
    config = msgspec.json.decode(client.get("/api/v1/config").content, type=RunConfig)
    assert config == seen.run.config


def test_rounds_come_with_their_rosters(client):
    rounds = msgspec.json.decode(client.get("/api/v1/rounds?limit=2").content, type=Rounds).rounds
    assert [rnd.round for rnd in rounds] == [2, 3]
    assert sum(entry.share for entry in rounds[0].roster) == pytest.approx(1.0)
    assert client.get("/api/v1/rounds/2").json() == json.loads(msgspec.json.encode(rounds[0]))


def test_of_rounds_that_name_many_peers_there_are_fewer(client, monkeypatch):
    for most, expected in ((1, [3]), (1000, [1, 2, 3])):
        monkeypatch.setattr(api, "MAX_NAMED", most)
        answer = client.get("/api/v1/rounds").json()
        assert [rnd["round"] for rnd in answer["rounds"]] == expected


def test_the_journal_can_be_checked_from_its_pages(client, seen):
    previous, seq = NO_HASH, 0
    while seq < len(seen.entries):
        page = client.get(f"/api/v1/journal?start={seq}&limit=5").json()
        assert page["num_entries"] == len(seen.entries)
        for entry in page["entries"]:
            body = seen.entries[seq].body
            assert decode(body) == decode(json.dumps(entry["record"]).encode())
            digest = entry_hash(seq=seq, previous=previous, body=body)
            assert (entry["seq"], entry["previous"], entry["hash"]) == (seq, previous, digest)
            previous, seq = digest, seq + 1


def test_without_a_start_the_journal_ends_with_the_newest_entry(client, seen):
    page = client.get("/api/v1/journal?limit=3").json()
    assert [entry["seq"] for entry in page["entries"]] == list(range(len(seen.entries)))[-3:]


@pytest.mark.parametrize(
    "query", ["limit=0", f"limit={MAX_ENTRIES + 1}", "limit=x", "start=-1", "start=1e3", "start=²"]
)
def test_a_number_that_is_none_is_refused_in_words(client, query):
    answer = client.get(f"/api/v1/journal?{query}")
    assert answer.status_code == 400
    assert "is a whole number from" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/rounds/9", 404),
        ("GET", "/api/v1/rounds/-1", 404),
        ("GET", f"/api/v1/rounds/{'9' * 5000}", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("POST", "/api/v1/overview", 405),
        ("DELETE", "/", 405),
        ("POST", "/api/v1/stream", 405),
    ],
)
def test_what_there_is_not_is_a_problem_with_a_hint(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "hint"}


def test_what_costs_something_is_made_once_for_all_who_ask_in_half_a_second(client, seen):
    first = client.get("/api/v1/overview").content
    seen.gather(1, start=3)
    assert client.get("/api/v1/overview").content == first


# --- the description -----------------------------------------------------------------------------


def test_every_route_of_the_api_is_described_and_answers(client):
    document = client.get("/api/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(READS) <= set(document["paths"])
    for path in READS:
        assert client.get(path.replace("{round}", "1")).status_code == 200


def test_every_reference_of_the_description_leads_somewhere():
    document = description()
    text = json.dumps(document)
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text))
    assert references
    assert references <= set(document["components"]["schemas"])


# --- metrics -------------------------------------------------------------------------------------

SAMPLE = re.compile(r'([a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\})? (\S+)')


def parsed(text: str) -> dict[str, float]:
    """Return each series with its value; fail where a line is not of the text format."""
    series, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in kinds
            assert (kinds[match[1]] == "counter") == match[1].endswith("_total")
            assert match[1] + (match[2] or "") not in series
            series[match[1] + (match[2] or "")] = float(match[3])
    return series


def test_metrics_say_what_the_journal_says(client, seen):
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    series = parsed(answer.text)
    assert series["atoll_rounds_committed_total"] == 2
    assert series["atoll_tokens_committed_total"] == seen.board.fold.view.num_tokens
    assert series["atoll_peers_connected"] == 3
    assert (
        sum(v for k, v in series.items() if "peer_tokens_committed" in k)
        == (series["atoll_tokens_committed_total"])
    )


def test_the_dashboard_for_grafana_asks_for_metrics_that_there_are(client):
    names = {re.split(r"[{ ]", series)[0] for series in parsed(client.get("/metrics").text)}
    path = Path(__file__).parents[3] / "configs" / "grafana.json"
    text = path.read_text(encoding="utf-8")
    asked = {
        name
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
        for name in re.findall(r"atoll_[a-z_]+", target["expr"])
    }
    assert asked
    assert asked <= names


@settings(deadline=None)
@given(st.text())
def test_any_name_of_a_peer_is_a_label(name):
    from tests.unit.web.cast import Seen, peer_id

    from atoll.web.metrics import render

    seen = Seen.new()
    seen.admit(peer_id(0), name)
    text = render(seen.board.catch_up(), seen.board.live()).decode(errors="surrogatepass")
    assert text.count("\n") == text.count("# ") + sum(
        not line.startswith("#") for line in text.split("\n")[:-1]
    )
    assert len([line for line in text.split("\n") if line.startswith("atoll_peer_connected")]) == 1
