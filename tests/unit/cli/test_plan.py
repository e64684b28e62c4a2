import json
import platform
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from atoll.cli.places import cache_directory
from atoll.forecast.fleet import example, load_fleet
from atoll.model.peaks import MeasuredPeak, remember
from atoll.tables import template

ROOT = Path(__file__).parents[3]
RUN = ROOT / "configs" / "150m.toml"
FLEETS = ROOT / "configs" / "fleets"
GOLDEN = ROOT / "tests" / "golden" / "plan.txt"

GROUP = """
[[groups]]
name = "a"
device = "H100"
memory_gib = 64
up_mbps = 100
down_mbps = 100
"""


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_what_it_prints_at_80_columns(atoll):
    """Rewrite it after a change that was meant: atoll plan ... > tests/golden/plan.txt."""
    outcome = atoll("plan", RUN, "--fleet", FLEETS / "example.toml")
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.rstrip() for line in outcome.out.splitlines()]
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 80


def test_json_has_every_figure_of_the_table(atoll, tmp_path):
    outcome = atoll("plan", RUN, "--fleet", FLEETS / "example.toml", "--json")
    seen = json.loads(outcome.out)
    assert [group["name"] for group in seen["groups"]] == ["lab", "gamers", "laptops"]
    assert seen["groups"][0]["memory"]["agent"]["vectors"] == 12 * seen["num_values"]
    assert any(line.startswith("laptops: late in each round") for line in seen["concerns"])


def test_the_plot_is_one_svg_with_every_group(atoll, tmp_path):
    path = tmp_path / "round.svg"
    for mode in ("blocking", "overlap"):
        run = tmp_path / f"{mode}.toml"
        run.write_text(RUN.read_text().replace('mode = "blocking"', f'mode = "{mode}"'))
        assert atoll("plan", run, "--fleet", FLEETS / "example.toml", "--plot", path).code == 0
        drawn = ElementTree.parse(path).getroot()
        texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
        assert {"2 x lab", "8 x gamers", "2 x laptops"} <= set(texts)
        bars = [element for element in drawn.iter() if element.tag.endswith("rect")]
        assert all(float(bar.get("width")) >= 0 for bar in bars)
        assert all(float(bar.get("x", 0)) + float(bar.get("width")) <= 900.1 for bar in bars)


def test_the_example_is_a_fleet_and_the_file_of_that_name(atoll, tmp_path):
    outcome = atoll("plan", "--example")
    assert outcome.code == 0
    assert outcome.out == (FLEETS / "example.toml").read_text(encoding="utf-8")
    assert load_fleet(FLEETS / "example.toml") == example()


@pytest.mark.parametrize("path", sorted(FLEETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_fleet_explains_each_of_its_keys(path):
    assert path.read_text(encoding="utf-8") == template(load_fleet(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "groups: missing"),
        ("groups = []", "groups: not a list of at least one table"),
        ("x = 1" + GROUP, "x: unknown key"),
        (GROUP + "up_mbp = 3", "groups[0].up_mbp: unknown key"),
        (GROUP.replace("up_mbps = 100", "up_mbps = -5"), "groups[0].up_mbps: -5 is not a number"),
        (GROUP.replace("H100", "H1000"), "groups[0].device: 'H1000' is not one of"),
        (GROUP.replace("H100", "own"), "groups[0].peak_tflops: missing"),
        (
            GROUP.replace("H100", "A100-80") + 'precision = "fp8"',
            "groups[0].precision: no products in 8 bits on this device: A100-80",
        ),
        (GROUP + "mfu = 1.5", "groups[0].mfu: 1.5 is not a number above 0 and at most 1"),
        (GROUP + GROUP, "groups[0].name: 'a' is the name of another group, too"),
        (GROUP + "count = 200000", "groups: 200000 peers, of 100000 at most"),
        ("[groups", "not a TOML file"),
    ],
)
def test_a_fleet_that_is_none_is_one_clear_error(atoll, tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    outcome = atoll("plan", RUN, "--fleet", path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {path}: {message}")


def test_a_device_of_our_own_does_what_was_measured_here(atoll, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "fleet.toml"
    path.write_text(GROUP.replace("H100", "own"), encoding="utf-8")
    outcome = atoll("plan", RUN, "--fleet", path)
    assert "`atoll doctor` measures it" in outcome.err
    found = MeasuredPeak(
        machine=platform.node(), device="CPU", threads=2, torch="2.13.0", bf16=True, flops=4e11
    )
    remember(found, cache=cache_directory())
    measured = atoll("plan", RUN, "--fleet", path)
    path.write_text(GROUP.replace("H100", "own") + "peak_tflops = 0.4", encoding="utf-8")
    assert (measured.code, measured.out) == (0, atoll("plan", RUN, "--fleet", path).out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.toml", "--fleet", FLEETS / "example.toml"), "nowhere.toml: no such file"),
        ((RUN, "--fleet", "nowhere.toml"), "nowhere.toml: no such file"),
        ((RUN, "--fleet", FLEETS / "example.toml", "--plot", "x.png"), "--plot x.png: not the"),
        ((RUN,), "on which machines?"),
    ],
)
def test_wrong_arguments_are_one_clear_error(atoll, arguments, message):
    outcome = atoll("plan", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}")


def test_the_help_loads_no_codec():
    code = (
        "import sys\nfrom atoll.cli.main import main\nsys.argv = ['atoll', 'plan', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numba', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
