import os
import re
import sys

import pytest
import typer
from rich.live import Live

from atoll.cli.show import Lines, Terminal, sparkline, write
from atoll.events import RoundClosed, RoundPlanned, StateAgreed, Stopped, Training
from atoll.ids import Digest, PeerId, RoundId


def test_a_line_of_a_log_file_has_its_day_and_time(capsys):
    Lines().show(StateAgreed(round=RoundId(7), digest=Digest("ab" * 32), peers=(PeerId("c" * 32),)))
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  state 7 is abababababab on 1 member\n", out
    )


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are of Unix")
@pytest.mark.parametrize("made", [os.openpty, os.pipe])
def test_when_the_window_is_closed_nothing_more_is_said_and_nothing_ends(made):
    theirs, ours = made()
    with os.fdopen(ours, "w") as file:
        terminal = Terminal(file=file, force_terminal=True)
        with Live(console=terminal, auto_refresh=False) as live:
            os.close(theirs)
            live.update("a picture", refresh=True)
            terminal.print("a line")
        terminal.print("another one")
    assert terminal.quiet


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a pipe is closed in another way")
def test_a_text_that_nobody_reads_any_more_ends_the_command_without_a_word(monkeypatch):
    theirs, ours = os.pipe()
    with os.fdopen(ours, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr("atoll.cli.show.console", Terminal(file=file))
        write("as long as somebody reads")
        os.close(theirs)
        with pytest.raises(typer.Exit) as ended:
            write("and then")
        assert ended.value.exit_code == 0
        file.write("what Python still writes at its end goes nowhere")


def test_one_is_not_several():
    one, two = (PeerId("c" * 32),), (PeerId("c" * 32), PeerId("d" * 32))
    lines = Lines()
    planned = RoundPlanned(round=RoundId(7), peers=one, reducers=one, reason="")
    assert lines.line(planned) == "round 7: 1 peer, reduced by cccccccc"
    closed = RoundClosed(round=RoundId(7), roster=two, missing=(), reason="")
    assert lines.line(closed) == "round 7: closed with 2 peers"


def test_a_run_that_is_complete_says_nothing_more_of_training():
    lines = Lines()
    step = Training(peer=PeerId("c" * 32), round=RoundId(8), step=80, loss=4.0, tokens_per_s=9.0)
    assert lines.line(Stopped(reason="the run is complete")) == "the run is complete"
    assert lines.line(step) is None


def test_a_curve_has_a_bar_for_each_value():
    assert sparkline([8, 4.5, 1], columns=10) == "█▅▁"


def test_a_long_curve_is_one_of_means():
    assert sparkline([1, 1, 1, 9, 9, 9], columns=2) == "▁█"
    assert sparkline([1, 3, 9], columns=2) == "▁█"


@pytest.mark.parametrize("columns", [1, 7, 60])
def test_a_curve_fits(columns):
    assert len(sparkline(range(1000), columns=columns)) == columns


def test_a_flat_curve_and_none_at_all():
    assert sparkline([5.0, 5.0], columns=9) == "▁▁"
    assert sparkline([], columns=9) == ""
