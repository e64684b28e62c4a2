import pytest

from atoll.config import load_run_config, template
from atoll.data.corpus import documents


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "texts" / "one.txt"
    path.parent.mkdir()
    path.write_text("Once upon a time.", encoding="utf-8")
    return path


def test_it_writes_a_run_that_loads_and_says_what_to_do_next(atoll, text, tmp_path):
    outcome = atoll("new", "my-run", "--data", "texts/one.txt", "--rounds", 8, "--peers", 3)
    assert (outcome.code, outcome.err) == (0, "")
    assert "atoll host my-run" in outcome.out
    assert "atoll join INVITE" in outcome.out

    config = load_run_config(tmp_path / "my-run" / "run.toml")
    assert (config.name, config.sync.rounds, config.sync.min_peers) == ("my-run", 8, 3)
    assert (tmp_path / "my-run" / "run.toml").read_text() == template(config)


def test_the_peers_that_are_expected_set_the_outer_lr(atoll, text, tmp_path):
    assert atoll("new", "x", "--data", "texts", "--peers-expected", 8).code == 0
    config = load_run_config(tmp_path / "x" / "run.toml")
    assert (config.outer.lr, config.outer.contributors, config.sync.min_peers) == (0.8, 8, 1)


@pytest.mark.parametrize("data", ["texts/one.txt", "texts", "./texts/../texts", "{absolute}"])
@pytest.mark.parametrize("run", ["my-run", "deep/er/my-run"])
def test_the_data_is_found_from_the_directory_of_the_run(
    atoll, text, tmp_path, monkeypatch, data, run
):
    assert atoll("new", run, "--data", data.format(absolute=text)).code == 0
    monkeypatch.chdir("/")
    (source,) = load_run_config(tmp_path / run / "run.toml").data.sources
    assert source.kind == "path"
    assert list(documents(source, base_directory=tmp_path / run)) == ["Once upon a time."]


def test_a_preset_is_named_as_one(atoll, tmp_path):
    assert atoll("new", tmp_path / "x", "--data", "sotu").code == 0
    (source,) = load_run_config(tmp_path / "x" / "run.toml").data.sources
    assert (source.kind, source.name) == ("preset", "sotu")


def test_it_overwrites_nothing(atoll, text, tmp_path):
    assert atoll("new", "x", "--data", "texts").code == 0
    before = (tmp_path / "x" / "run.toml").read_bytes()
    outcome = atoll("new", "x", "--data", "texts", "--rounds", 3)
    assert outcome.code == 2
    assert "exists" in outcome.err
    assert (tmp_path / "x" / "run.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("x", "--data", "nowhere"), "--data nowhere: no such file or folder"),
        (("x", "--data", "empty"), "no text files in empty"),
        (("x", "--data", "latin1.txt"), "latin1.txt, line 1: not UTF-8"),
        (("x", "--data", "texts", "--model", "huge"), "--model huge: not one of tiny"),
        (("a name", "--data", "texts"), "name: 'a name' is not"),
    ],
)
def test_what_cannot_become_a_run_leaves_nothing_behind(atoll, text, tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin1.txt").write_bytes("déjà vu".encode("latin-1"))
    outcome = atoll("new", *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / options[0]).exists()
