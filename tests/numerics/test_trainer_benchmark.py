"""benchmarks/trainer.py, in small: it must be right before the machine is quiet for it."""

import importlib
import json
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = (
    "--model",
    "tiny",
    "--sequence-length",
    "16",
    "--batch",
    "2",
    "--starts",
    "1",
    "--steps",
    "1",
)


@pytest.fixture
def trainer(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("trainer")


def test_prints_the_ratios(trainer, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trainer.py", *SMALL, "--json", "--dtype", "bf16"])
    trainer.main()
    found = json.loads(capsys.readouterr().out)
    assert found["ratio_transformers"] > 0
    assert found["ratio_bare_loop"] > 0
    assert found["of_peak"] > 0
    assert found["ratio_hf_trainer"] > 0
    assert (found["model"], found["turns"], found["dtype"]) == ("tiny", 1, "bf16")


@pytest.mark.parametrize("number", [5, 6])
def test_each_system_follows_each_other_one_equally_often(trainer, number):
    orders = [trainer.order(number, turn=turn) for turn in range(2 * number)]
    assert all(sorted(places) == list(range(number)) for places in orders)
    behind = Counter(pair for places in orders for pair in pairwise(places))
    assert behind == dict.fromkeys(permutations(range(number), 2), 2)
