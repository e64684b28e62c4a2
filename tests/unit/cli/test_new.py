import json

import numpy as np
import pytest
from msgspec.structs import replace

from atoll.config import load_run_config, template
from atoll.data.corpus import documents
from atoll.data.tokenizer import START, Tokenizer
from atoll.errors import ConfigError
from atoll.exchange.initial import initial_params, require_initial
from atoll.model.hf import Text, export_hf
from atoll.model.layout import in_layout_, layout_of
from atoll.model.presets import PRESETS
from atoll.model.shapes import num_parameters


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


@pytest.fixture
def theirs(text, tmp_path):
    """The folder of a small Llama; its weights are 0, 1, 2, ..."""
    model = replace(PRESETS["tiny"], vocab_size=300, num_layers=2, width=16, ffn_width=24)
    Tokenizer.train(["Once upon a time."], vocab_size=300).save(tmp_path / "tokenizer.json")
    params_N = np.arange(num_parameters(model), dtype=np.float32)
    export_hf(
        tmp_path / "theirs", model, params_N, text=Text(tmp_path / "tokenizer.json", START, 0, 32)
    )
    return tmp_path / "theirs"


def test_a_run_can_begin_with_the_weights_of_a_folder(atoll, theirs, tmp_path):
    run = tmp_path / "x"
    assert atoll("new", "x", "--init-from", "theirs", "--data", "texts").code == 0
    config = load_run_config(run / "run.toml")
    assert (config.model.width, config.model.num_layers) == (16, 2)
    assert config.inner.lr == pytest.approx(2e-4)
    assert (run / config.data.tokenizer.path).read_bytes() == (
        theirs / "tokenizer.json"
    ).read_bytes()
    require_initial(config, run)
    given_N = np.arange(num_parameters(config.model), dtype=np.float32)
    assert np.array_equal(initial_params(config, run), given_N)

    cut = replace(config, sync=replace(config.sync, fragments=2))
    in_layout_(given_N, layout_of(cut))
    assert np.array_equal(initial_params(cut, run), given_N)
    for changed in (
        replace(config, initial="0" * 64),
        replace(config, model=replace(config.model, ffn_width=26)),
    ):
        with pytest.raises(ConfigError, match="initial: "):
            require_initial(changed, run)
        assert initial_params(changed, run) is None
    require_initial(replace(config, initial=""), run)
    (run / "initial").rename(run / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        require_initial(config, run)


def test_a_folder_that_is_no_llama_leaves_nothing_behind(atoll, theirs, tmp_path):
    def refused(*more):
        outcome = atoll("new", "x", "--init-from", "theirs", "--data", "texts", *more)
        assert (outcome.code, (tmp_path / "x").exists()) == (2, False)
        return outcome.err

    assert "both --model and --init-from" in refused("--model", "tiny")
    content = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(content | {"model_type": "mixtral"}))
    assert "model_type is 'mixtral'" in refused()
    (theirs / "config.json").write_text(json.dumps(content))
    (theirs / "tokenizer.json").unlink()
    assert "there is no tokenizer.json" in refused()
    theirs.rename(tmp_path / "elsewhere")
    assert "no such folder" in refused()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("x", "--data", "nowhere"), "--data nowhere: no such file or folder"),
        (("x", "--data", "huggingface:"), "--data huggingface: names no data set"),
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
