"""A conversation, without a terminal; and the command, with lines from a pipe."""

import io
import sys

import pytest
import torch
from tests.unit.talk.cast import MAX_TOKENS, export_tiny

from atoll.cli.conversation import HELP, Conversation, Settings
from atoll.talk.source import ExportedFolder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def speaker(exported):
    return ExportedFolder(exported, device=torch.device("cpu")).newer()


class Once:
    """A source that has these newer models, one for each time that it is asked."""

    def __init__(self, *newer):
        self.newer_ones = list(newer)

    def newer(self):
        return self.newer_ones.pop(0) if self.newer_ones else None


class Talk:
    def __init__(self, speaker, *newer, **settings):
        self.written, self.notes = "", []
        self.settings = Settings(**settings)
        self.conversation = Conversation(
            Once(*newer), speaker, self.settings, write=self.write, note=self.notes.append
        )

    def write(self, text):
        self.written += text

    def hear(self, line):
        """Return what was written for this line."""
        before = len(self.written)
        assert self.conversation.hear(line)
        return self.written[before:]


def test_it_goes_on_from_all_that_was_written(speaker):
    once = Talk(speaker, temperature=0, length=8)
    first = once.hear("The reef").removesuffix("\n")
    second = once.hear("").removesuffix("\n")
    at_once = Talk(speaker, temperature=0, length=8)
    assert at_once.hear("The reef" + first).removesuffix("\n") == second


def test_a_text_longer_than_the_model_knows_goes_on(speaker):
    talk = Talk(speaker, length=10 * MAX_TOKENS)
    talk.hear("The reef hides below the tide. " * MAX_TOKENS)
    assert talk.written.count("\n") >= 1


def test_the_same_seed_writes_the_same_but_not_twice(speaker):
    one, other = Talk(speaker, seed=1), Talk(speaker, seed=1)
    first = one.hear("The reef")
    assert other.hear("The reef") == first
    assert one.hear("/new") == ""
    assert one.hear("The reef") != first


def test_a_newer_model_is_told_of_and_used(speaker):
    class Newer:
        version = "state 7 of 9"

        def __getattr__(self, name):
            return getattr(speaker, name)

    talk = Talk(speaker, Newer())
    assert talk.hear("The reef")
    assert talk.notes == ["state 7 of 9 is in use from now on"]
    talk.hear("The reef")
    assert len(talk.notes) == 1


def test_ctrl_c_ends_the_answer_alone(speaker):
    talk = Talk(speaker)
    calls = 0

    def interrupted(text):
        nonlocal calls
        calls += 1
        talk.written += text
        if calls == 3:
            raise KeyboardInterrupt

    talk.conversation = Conversation(
        Once(), speaker, talk.settings, write=interrupted, note=talk.notes.append
    )
    assert talk.hear("The reef").endswith(" [stopped]\n")
    assert talk.hear("The reef")  # and it is still there


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("/help", HELP),
        ("/temperature 0.5", "temperature 0.5"),
        ("/temperature", "temperature 0.8"),
        ("/temperature -1", "a temperature is a number from 0 on"),
        ("/temperature nan", "a temperature is a number from 0 on"),
        ("/length 7", "at most 7 tokens each time"),
        ("/length 99", "at most 99 tokens each time; this model manages 32 at a time"),
        ("/length 0", "a length is a number of tokens"),
        ("/length many", "a length is a number of tokens"),
        ("/nothing", "no such command: /nothing"),
    ],
)
def test_commands_say_what_they_did(speaker, line, note):
    talk = Talk(speaker)
    assert talk.hear(line) == ""
    assert len(talk.notes) == 1
    assert talk.notes[0].startswith(note)


def test_quit_ends_it(speaker):
    assert not Talk(speaker).conversation.hear("/quit")


def test_the_command_reads_lines_to_their_end(atoll, exported, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("The reef\n/length 5\n\n"))
    outcome = atoll("chat", exported, "--length", 12, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("reef. It goes on from what")
    assert "at most 5 tokens each time" in outcome.out


def test_there_is_nobody_to_talk_to(atoll, tmp_path):
    outcome = atoll("chat", tmp_path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: no trained model in {tmp_path}")
