"""`atoll takeover`, where the journal is a file: the copy that leads from now on."""

from contextlib import closing

import pytest
from tests.unit.host.scene import CONFIG

from atoll.cli.takeover import takeover
from atoll.config import template
from atoll.errors import ConfigError, RunError
from atoll.host.journal import Journal, led_in
from atoll.host.lead import lead_by_file
from atoll.host.setup import open_run
from atoll.host.stores import open_file
from atoll.ids import digest_of
from atoll.net.authority import Authority


@pytest.fixture
def run(tmp_path):
    """The directory of a run that a host has led."""
    (tmp_path / "run.toml").write_text(template(CONFIG), encoding="utf-8")
    opened = open_run(tmp_path, CONFIG, dataset=digest_of(b"dataset"))
    lead_by_file(opened.journal, "reef:7777")
    opened.close()
    return tmp_path


def led(path):
    with closing(Journal(open_file(path), sign=Authority.load(path).sign)) as journal:
        return led_in(journal.led)


def test_the_next_start_leads_in_a_higher_epoch_at_the_same_address(run, capsys):
    takeover(run)
    assert (led(run).epoch, led(run).address) == (2, "reef:7777")
    assert "will lead in epoch 2" in capsys.readouterr().out
    takeover(run, above=8)
    assert led(run).epoch == 9


def test_a_directory_that_is_served_is_left_alone(run):
    opened = open_run(run, CONFIG, dataset=digest_of(b"dataset"))
    with pytest.raises(RunError, match="a host process serves"):
        takeover(run)
    opened.close()
    assert led(run).epoch == 1


def test_a_run_that_has_not_begun_cannot_be_taken_over(tmp_path):
    (tmp_path / "run.toml").write_text(template(CONFIG), encoding="utf-8")
    with pytest.raises(ConfigError, match="has not begun"):
        takeover(tmp_path)
