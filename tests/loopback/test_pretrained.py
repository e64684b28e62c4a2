"""A run that begins with weights of a Hugging Face folder, from `atoll new` to `atoll verify`."""

import json
import sys

import numpy as np
import pytest
from msgspec.structs import replace
from tests.loopback.cluster import with_sync
from tests.loopback.proof import assert_run_is_sound

from atoll.cli.main import main
from atoll.config import EvaluationConfig, load_run_config, run_digest
from atoll.data.manifest import TOKENIZER_FILE
from atoll.data.prepare import prepare
from atoll.events import StateSynced
from atoll.ids import INITIAL
from atoll.model.hf import Text, export_hf
from atoll.model.layout import in_layout_, layout_of
from atoll.model.shapes import num_parameters
from atoll.net.records import Agreed, Evaluated
from atoll.outer.manifest import manifest_of
from atoll.outer.state import PeerState

pytestmark = pytest.mark.timeout(600)  # several processes import torch, one after the other

ROUNDS = 4


@pytest.fixture
def pretrained(config, shared, tmp_path):
    """A folder as others make it, and its weights in the order of the model."""
    model = replace(config.model, num_layers=2, width=32, num_heads=2, num_kv_heads=1, ffn_width=48)
    dataset = prepare(
        config, base_directory=tmp_path, directory=shared / "datasets", on_progress=lambda *_: None
    )
    params_N = np.random.default_rng(3).normal(0, 0.02, num_parameters(model)).astype(np.float32)
    text = Text(dataset.folder / TOKENIZER_FILE, "<|begin|>", dataset.start_token, 32)
    export_hf(tmp_path / "theirs", model, params_N, text=text)
    return tmp_path / "theirs", params_N


def test_a_run_begins_with_the_weights_of_a_folder(
    cluster, config, text, pretrained, monkeypatch, capfd
):
    folder, params_N = pretrained
    cluster.command("new", str(cluster.run), "--init-from", str(folder), "--data", str(text))
    written = load_run_config(cluster.run / "run.toml")
    # Fragments reorder the flat vector: what was saved before they were chosen has to follow.
    begun = replace(
        with_sync(
            replace(written, inner=config.inner),
            **_fields(config.sync)
            | {
                "rounds": ROUNDS,
                "fragments": 2,
                "min_peers": 1,
                "silent_s": 20.0,
                "reconnect_s": 40.0,
            },
        ),
        data=replace(written.data, sequence_length=32, validation_share=0.05),
        evaluation=EvaluationConfig(every_rounds=2, samples=8, prompt="The reef"),
    )
    cluster.write_run(begun)
    host = cluster.start_host()
    anna = cluster.join("anna")
    assert [process.wait(seconds=400) for process in (anna, host)] == [0, 0], cluster.report()

    in_layout_(params_N, layout_of(begun))
    state = manifest_of(PeerState.initial(params_N), run=run_digest(begun)).digest
    assert cluster.records(Agreed)[INITIAL].state == state
    (first,) = anna.find(StateSynced)
    assert (first.round, first.num_bytes >= 4 * params_N.size) == (INITIAL, True)
    assert not (anna.home / "initial" / "000000").exists(), "a newer state is on its disk"
    assert_run_is_sound(cluster, begun, rounds=ROUNDS)

    def output_of(*arguments):
        monkeypatch.setattr(sys, "argv", ["atoll", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capfd.readouterr().out

    verified = output_of("verify", cluster.run)
    assert f"states 0 to {ROUNDS} computed anew: as agreed" in verified

    evaluated = cluster.records(Evaluated)
    assert evaluated[-1].round == ROUNDS, "the host waits for what is said of the last state"
    assert evaluated[-1].text.startswith("The reef")
    options = ("--samples", 8, "--questions", 0, "--json", "--cache", cluster.cache)
    found = json.loads(output_of("eval", cluster.run, *options))
    assert evaluated[-1].loss == pytest.approx(found["validation_loss"], rel=1e-5)
    status = output_of("status", cluster.run)
    assert f"held out {evaluated[-1].loss:.3f} at state {ROUNDS}, says anna" in status
    assert "writes   The reef" in status


def _fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}
