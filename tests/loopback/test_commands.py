"""What a user does with a run once it has trained, all on one real run with a host and one peer."""

import io
import json
import shutil
import sys
from math import log

import numpy as np
import pytest
from msgspec.structs import replace
from tests.loopback.cluster import Cluster

from atoll.cli.harness import OFFLINE
from atoll.cli.main import main
from atoll.cli.reader import reading
from atoll.model.hf import import_hf
from atoll.net.records import Agreed, Committed
from atoll.outer.saved import read_saved, saved_rounds

ROUNDS = 3
MODEL_WIDTH = 32


@pytest.fixture(scope="module")
def config(config):
    model = replace(config.model, width=MODEL_WIDTH, ffn_width=64)
    sync = replace(config.sync, rounds=ROUNDS, inner_steps=2, min_peers=1)
    return replace(config, model=model, sync=sync)


@pytest.fixture(scope="module")
def trained(config, shared, tmp_path_factory):
    """A run that is complete, and that one has read along with; its processes have ended."""
    cluster = Cluster(tmp_path_factory.mktemp("commands"), cache=shared / "datasets")
    try:
        cluster.write_run(config)
        host = cluster.start_host()
        with reading(cluster.invite, cluster.peers / "reader") as reader:
            peer = cluster.join("anna", "--place", "Lisbon")
            assert [p.wait(seconds=90) for p in (peer, host)] == [0, 0], cluster.report()
            reader.check()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def atoll(trained, monkeypatch, capfd):
    """Return a function that runs a command and returns its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["atoll", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capfd.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def copied(trained, tmp_path):
    """The run's directory, for a test that damages it."""
    return shutil.copytree(trained.run, tmp_path / "run")


# --- status --------------------------------------------------------------------------------------


def test_status_tells_how_the_run_stands(trained, atoll, config):
    code, out, _ = atoll("status", trained.run)
    assert code == 0
    assert f"rounds   {ROUNDS} of {ROUNDS} committed" in out
    assert trained.records(Agreed)[-1].state[:12] in out
    assert "name anna" in out
    assert "share 100%" in out


def test_status_for_programs(trained, atoll, config):
    code, out, _ = atoll("status", trained.run, "--json")
    view = json.loads(out)
    tokens = ROUNDS * config.samples_per_round * config.data.sequence_length
    assert code == 0
    assert (view["committed"], view["rounds"], view["num_tokens"]) == (ROUNDS, ROUNDS, tokens)
    (anna,) = (peer for peer in view["peers"] if peer["num_tokens"])  # a reader has none
    assert (anna["name"], anna["place"], anna["num_tokens"]) == ("anna", "Lisbon", tokens)
    assert anna["peak_flops"] > 1e6, "its trainer has measured it, or a data sheet says it"
    assert len(view["losses"]) == ROUNDS


def test_status_of_a_run_that_nobody_has_served(trained, atoll, tmp_path):
    shutil.copy(trained.run / "run.toml", tmp_path)
    code, out, _ = atoll("status", tmp_path / "run.toml")
    assert code == 0
    assert "not begun" in out
    assert "atoll host" in out
    assert atoll("status", tmp_path, "--json")[1].strip() == "null"


# --- verify --------------------------------------------------------------------------------------


def test_verify_proves_the_whole_run(trained, atoll):
    code, out, err = atoll("verify", trained.run)
    assert (code, err) == (0, "")
    assert f"states 0 to {ROUNDS} computed anew: as agreed" in out
    assert "open" not in out
    assert out.splitlines()[-1] == "nothing is wrong"


def test_verify_says_what_it_could_not_prove(copied, atoll):
    shutil.rmtree(copied / "built-in" / "blobs")
    code, out, _ = atoll("verify", copied)
    assert code == 0
    assert "state 1 cannot be computed" in out  # 2 and 3 are on disk
    assert out.splitlines()[-1] == "nothing is wrong, but not all could be proved"


def test_verify_finds_a_flipped_bit(copied, atoll):
    newest = copied / "built-in" / "states" / f"{ROUNDS:06}" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    code, _, err = atoll("verify", copied)
    assert code == 1
    assert err.startswith(f"error: {newest} is damaged")
    assert "hint: " in err


# --- generate, export, train ---------------------------------------------------------------------


def test_generate_writes_the_same_from_the_host_and_from_the_peer(trained, atoll):
    options = ("--tokens", 20, "--seed", 3, "--cache", trained.cache)
    from_host = atoll("generate", trained.run, "The reef", *options)
    from_peer = atoll("generate", trained.peers / "anna", "The reef", *options)
    other_seed = atoll("generate", trained.run, "The reef", *options, "--seed", 4)
    assert from_host == from_peer
    assert from_host != other_seed
    code, out, _ = from_host
    assert code == 0
    assert out.startswith("The reef")
    assert len(out) > len("The reef\n")


def test_who_reads_along_has_the_model_and_not_the_samples(trained, atoll, tmp_path, monkeypatch):
    reader = trained.peers / "reader"
    states = reader / "states"
    digest = read_saved(states, saved_rounds(states)[-1], run=_run_of(trained))[1]
    assert digest == trained.records(Agreed)[-1].state
    options = ("--tokens", 20, "--seed", 3)
    written = atoll("generate", reader, "The reef", *options, "--cache", tmp_path)
    assert written == atoll("generate", trained.run, "The reef", *options, "--cache", trained.cache)
    code, _, err = atoll("eval", reader, "--cache", tmp_path)
    assert (code, "which has the samples" in err) == (2, True)
    rosters = [[entry.peer for entry in record.roster] for record in trained.records(Committed)]
    assert rosters == [[trained.id_of("anna")]] * ROUNDS
    monkeypatch.setattr(sys, "stdin", io.StringIO("The reef\n"))
    code, out, _ = atoll("chat", reader, "--seed", 3, "--length", 12, "--cache", tmp_path)
    assert code == 0
    assert f"loopback, state {ROUNDS} of {ROUNDS}" in out


def test_eval_says_the_same_of_the_host_and_of_the_peer(trained, atoll, config):
    options = ("--samples", 8, "--questions", 4, "--json", "--cache", trained.cache)
    code, out, err = atoll("eval", trained.run, *options)
    assert code == 0
    assert "reading 8 samples" in err
    assert atoll("eval", trained.peers / "anna", *options)[1] == out
    found = json.loads(out)
    assert (found["state"], found["samples"], found["questions"]) == (ROUNDS, 8, 4)
    assert 0 < found["validation_loss"] < 2 * log(config.model.vocab_size)
    assert found["cloze"] in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_eval_says_what_it_lacks_for_tasks(trained, atoll, tmp_path, monkeypatch):
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)  # as the command does, and undone after the test
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    for options, message in [
        (("--tasks", "reefs"), "--tasks and --task-data go together"),
        (("--task-data", tmp_path), "--tasks and --task-data go together"),
        (("--tasks", "reefs", "--task-data", tmp_path / "none"), "no such folder"),
        (("--tasks", "reefs", "--task-data", tmp_path), "pip install 'atoll[eval]'"),
    ]:
        code, _, err = atoll("eval", trained.run, *options, "--cache", trained.cache)
        assert (code, message in err) == (2, True), err


def test_export_writes_the_newest_state(trained, atoll, config, tmp_path):
    code, out, _ = atoll("export", trained.run, tmp_path / "out", "--cache", trained.cache)
    assert code == 0
    assert str(tmp_path / "out") in out.replace("\n", "")
    model, params_N = import_hf(tmp_path / "out")
    states = trained.peers / "anna" / "states"
    state, digest = read_saved(states, saved_rounds(states)[-1], run=_run_of(trained))
    assert model.width == MODEL_WIDTH
    assert digest == trained.records(Agreed)[-1].state
    assert np.array_equal(params_N, state.params_N)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| state | {ROUNDS} of {ROUNDS}, `{digest}` |" in card
    assert f"| anna | {ROUNDS} | " in card


def test_export_writes_a_gguf_file(trained, atoll, tmp_path):
    out = tmp_path / "model.gguf"
    assert atoll("export", trained.peers / "anna", out, "--cache", trained.cache)[0] == 0
    assert out.read_bytes()[:4] == b"GGUF"
    code, _, err = atoll("export", trained.run, out, "--cache", trained.cache)
    assert (code, "exists" in err) == (2, True)


def _run_of(trained):
    return trained.entries()[0].record.run


def test_export_overwrites_nothing(trained, atoll, tmp_path):
    (tmp_path / "precious").touch()
    code, _, err = atoll("export", trained.run, tmp_path, "--cache", trained.cache)
    assert code == 2
    assert "not an empty folder" in err


@pytest.mark.parametrize("command", [("generate",), ("export",)])
def test_without_the_dataset_there_is_no_tokenizer(trained, atoll, tmp_path, command):
    out = [tmp_path / "out"] if command == ("export",) else []
    for home in (trained.run, trained.peers / "anna"):
        code, _, err = atoll(*command, home, *out, "--cache", tmp_path)
        assert code == 2
        assert "tokenizer is not at hand" in err
        assert "--cache" in err


def test_a_directory_without_a_model(trained, atoll, tmp_path):
    code, _, err = atoll("generate", tmp_path, "--cache", trained.cache)
    assert code == 2
    assert f"no trained model in {tmp_path}" in err


def test_train_trains_alone_and_keeps_the_model(trained, atoll, config, tmp_path):
    options = ("--threads", 1, "--cache", trained.cache, "--out", tmp_path / "out")
    code, out, err = atoll(
        "train", trained.run / "run.toml", "--steps", 3, "--batch-factor", 2, *options
    )
    assert code == 0
    assert "3 steps of 8 sequences" in out
    assert "validation loss" in out
    assert "step 3 of 3: loss" in err
    assert import_hf(tmp_path / "out")[0].width == MODEL_WIDTH


def test_train_looks_at_the_folder_before_it_trains(trained, atoll, tmp_path):
    (tmp_path / "precious").touch()
    code, _, err = atoll("train", trained.run, "--cache", trained.cache, "--out", tmp_path)
    assert code == 2
    assert "not an empty folder" in err
    assert "step" not in err
