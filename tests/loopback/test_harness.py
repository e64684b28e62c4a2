"""Our model in lm-evaluation-harness itself, beside the harness's own of the same weights."""

import json
import subprocess
import sys

import pytest
import torch
from tests.unit.talk.cast import export_tiny

from atoll.data.tokenizer import START
from atoll.talk.harness import HarnessModel
from atoll.talk.source import ExportedFolder

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

LONG = "The reef hides below the tide. Où la vague casse. 珊瑚礁。" * 6
CHOICE = """
task: {name}
dataset_path: {path}
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
"""
ROLLING = """
task: tides
dataset_path: json
dataset_kwargs: {data_files: {test: reefs.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WRITING = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: reefs.jsonl}}
test_split: test
output_type: generate_until
generation_kwargs: {until: ["."], max_gen_toks: 4}
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("harness"))


def test_it_answers_as_the_model_of_the_harness_does(exported):
    from lm_eval.models.huggingface import HFLM

    speaker = ExportedFolder(exported, device=torch.device("cpu")).newer()
    ours = HarnessModel(speaker, note=lambda what, done: None)
    theirs = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=3)
    pairs = [
        ("The reef", " hides below"),
        ("The reef ", "hides"),
        ("Où la vague", " casse, là"),
        ("", "The tide."),
        (LONG, " tide"),
    ]
    one = {"max_gen_toks": 1}
    contexts = ["The reef", "The", "Où la", "hides", "tide", "casse", "below the"]
    likeliest = ours.generate_until(instances([(context, one) for context in contexts]))
    pairs += [(c, text) for c, text in zip(contexts, likeliest, strict=True) if text]
    found = ours.loglikelihood(instances(pairs))
    # Theirs begins a text with the start token if that is written out.
    expected = theirs.loglikelihood(instances([(START + c if c else c, a) for c, a in pairs]))
    assert [logprob for logprob, _ in found] == pytest.approx([e[0] for e in expected], rel=1e-4)
    assert [is_greedy for _, is_greedy in found] == [e[1] for e in expected]
    assert {is_greedy for _, is_greedy in found} == {True, False}
    texts = [(LONG,), ("The reef",), (LONG * 2,)]
    assert ours.loglikelihood_rolling(instances(texts)) == pytest.approx(
        theirs.loglikelihood_rolling(instances(texts)), rel=1e-4
    )
    asked = {"until": ["e"], "max_gen_toks": 8, "do_sample": False}
    contexts = [("The reef", asked), ("Où la vague", asked), (LONG, asked)]
    assert ours.generate_until(instances(contexts)) == theirs.generate_until(
        instances([(START + context, dict(asked)) for context, _ in contexts])
    )


def instances(arguments):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, args, number) for number, args in enumerate(arguments)]


def test_tasks_of_a_folder_run_and_one_that_wants_the_hub_ends_in_a_message(exported, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": "The reef hides below", "choices": [" the tide", " a wave"], "answer": k % 2}
        for k in range(8)
    ]
    (folder / "reefs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    choice = {"name": "reefs", "path": "json", "file": "reefs.jsonl"}
    (folder / "reefs.yaml").write_text(CHOICE.format(**choice))
    (folder / "tides.yaml").write_text(ROLLING)
    (folder / "words.yaml").write_text(WRITING)
    far = {"name": "far", "path": "owner/far-away", "file": "x"}
    (folder / "far.yaml").write_text(CHOICE.format(**far))
    (folder / "torn.jsonl").write_text('{"question": ')
    torn = {"name": "torn", "path": "json", "file": "torn.jsonl"}
    (folder / "torn.yaml").write_text(CHOICE.format(**torn))

    done = evaluate(exported, "reefs,tides,words", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    scores = {(score["task"], score["metric"]): score for score in found["scores"]}
    assert scores["reefs", "acc"]["value"] == 0.5  # one question, with either answer
    assert scores["reefs", "acc"]["stderr"] == pytest.approx((0.25 / 7) ** 0.5)
    assert scores["tides", "bits_per_byte"]["value"] > 0
    assert ("words", "exact_match") in scores

    for task in ("far", "torn"):
        done = evaluate(exported, task, folder)
        assert done.returncode == 2, done.stderr
        assert "error: cannot read the data of a task from this machine" in done.stderr
        assert "Traceback" not in done.stderr
    done = evaluate(exported, "near", folder)
    assert done.returncode == 2
    assert "there are: far, reefs, tides, torn, words" in done.stderr


def evaluate(exported, tasks, folder, *options):
    command = [sys.executable, "-m", "atoll.cli.main", "eval", exported, *options]
    return subprocess.run(
        [*command, "--device", "cpu", "--tasks", tasks, "--task-data", folder],
        capture_output=True,
        text=True,
        timeout=200,
    )
