"""Where peers are on the map (static/regions.js), in an engine without a browser."""

import json
import re
from importlib import resources

import pytest
from hypothesis import given, settings, strategies as st
from py_mini_racer import MiniRacer

MODULES = ("world.js", "regions.js")


@pytest.fixture(scope="module")
def script():
    engine = MiniRacer()
    for name in MODULES:
        source = resources.files("atoll.web").joinpath(f"static/{name}").read_text(encoding="utf-8")
        engine.eval(re.sub(r"(?m)^export |^import .*\n", "", source))
    return lambda expression: json.loads(engine.eval(f"JSON.stringify({expression})"))


def located(script, place):
    found = script(f"located({json.dumps(place)})")
    return found["key"], found["at"]


def peer(place, *, tokens=0, is_in=True):
    return {"place": place, "tokens": tokens, "in": is_in}


def regions(script, *peers):
    return script(f"regions({json.dumps(peers)})")


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("Lisbon, PT", "pt"),
        ("lisbon, portugal", "pt"),
        ("PT", "pt"),
        ("Wellington, New Zealand", "nz"),
        ("Wellington New Zealand", "nz"),
        ("London, UK", "gb"),
        ("Austin, TX, USA", "us"),
        ("Seoul, South Korea", "kr"),
        ("Abidjan, Côte d'Ivoire", "ci"),
        ("Singapore", "sg"),
    ],
)
def test_words_that_end_with_a_country_lie_in_it(script, place, code):
    key, at = located(script, place)
    assert (key, at) == (code, script(f"COUNTRIES.{code}.slice(1, 3)"))


@pytest.mark.parametrize(
    "place", ["a boat", "at home", "", "Narnia", "12", "91.0, 5.0", "Pt 4", "constructor"]
)
def test_other_words_are_not_on_the_map(script, place):
    assert located(script, place)[1] is None


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("Lisbon, PT (38.7, -9.1)", "Lisbon, PT"),
        ("Lisbon 38.7,-9.1", "Lisbon"),
        ("38.7, -9.1", "38.7° N, 9.1° W"),
    ],
)
def test_a_position_says_where_exactly(script, place, name):
    assert script(f"located({json.dumps(place)})") == {
        "key": "38.7,-9.1",
        "name": name,
        "at": [38.7, -9.1],
    }


def test_peers_of_a_region_are_counted_together(script):
    found = regions(
        script,
        peer("", tokens=5),
        peer("Lisbon, PT", tokens=10),
        peer("Porto, Portugal", tokens=30, is_in=False),
        peer("a boat", tokens=5),
        peer("Kyoto, JP", tokens=50),
    )
    said = [(r["name"], r["numIn"], r["numEver"], r["share"], bool(r["at"])) for r in found]
    assert said == [
        ("Kyoto, JP", 1, 1, 0.5, True),
        ("Portugal", 1, 2, 0.4, True),
        ("a boat", 1, 1, 0.05, False),
        ("", 1, 1, 0.05, False),
    ]


def test_each_country_lies_on_the_map_or_south_of_it(script):
    width, height = script("SIZE")
    for code, (_, lat, lon, names) in script("COUNTRIES").items():
        assert names, code
        assert 0 <= script(f"x({lon})") <= width, code
        assert 0 <= script(f"y({lat})") <= height or lat < -50, code


places = st.sampled_from(
    [
        "Lisbon, PT",
        "Berlin, DE",
        "Vienna, Austria",
        "Prague, CZ",
        "Auckland, NZ",
        "Fiji",
        "1, 179.9",
    ]
) | st.tuples(st.floats(-90, 90), st.floats(-180, 180)).map(lambda at: f"{at[0]:.2f}, {at[1]:.2f}")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(places, st.integers(0, 10**9)), min_size=1, max_size=40))
def test_labels_lie_in_the_picture_and_not_on_each_other(script, said):
    peers = [peer(place, tokens=tokens) for place, tokens in said]
    found = script(f"mapped(regions({json.dumps(peers)}))")
    boxes = [label["box"] for label in found["labels"]]
    width, height = script("SIZE")
    for dot in found["dots"]:
        assert 0 <= dot["x"] <= width
        assert 0 < dot["r"] <= 14
        assert dot["y"] <= height
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= width
        for west, north, east, south in boxes[:index]:
            assert right < west or left > east or bottom < north or top > south


def test_whatever_is_said_is_a_region(script):
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.text(max_size=60), max_size=5))
    def check(said):
        found = regions(script, *map(peer, said))
        assert sum(region["numEver"] for region in found) == len(said)

    check()
