"""The pages that follow from the code are of this code, and the examples in others work."""

import doctest
import re
import runpy
from pathlib import Path
from typing import get_args

import pytest

from atoll.cli.demo_config import demo_config
from atoll.config import PeerConfig, template
from atoll.net import wire

DOCS = Path(__file__).parents[1] / "docs"
WITH_EXAMPLES = [p for p in sorted(DOCS.glob("*.md")) if ">>> " in p.read_text(encoding="utf-8")]


def test_the_generated_pages_have_every_key_and_every_message():
    pages = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    for text in (template(demo_config(peers=3, rounds=16)), template(PeerConfig())):
        for key in re.findall(r"(?m)^(\w+) = ", text):
            assert f"| `{key}` |" in pages["config.md"]
    for message in get_args(wire.Message):
        assert f"## `{message.__name__}`" in pages["messages.md"]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.name)
def test_examples_work(path):
    text = path.read_text(encoding="utf-8").replace("```", "")
    examples = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    result = doctest.DocTestRunner().run(examples)
    assert result.attempted
    assert not result.failed


def test_there_are_examples():
    assert WITH_EXAMPLES
