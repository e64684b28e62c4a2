"""benchmarks/gpu.py, in small on the CPU: it must be right before a GPU is at hand."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
SMALL = ("--models", "tiny", "tiny", "--layers", "1", "--sequence-length", "16", "--steps", "1")


def test_answers_each_question_on_a_cpu():
    plain = ("--device", "cpu", "--compiler", "none", "--pairs", "1")
    command = [sys.executable, str(SCRIPT), *plain, *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    questions = [line["question"] for line in lines]
    exchange = ["snapshot", "beside", "merge", "merge", "merge"]
    step = ["step", "breakdown"]
    of_model = ["step", *step, "packed", *exchange, *step]
    assert questions == [*of_model, *of_model, "reference", "reference"]
    assert "no matrix of this model is large enough" in lines.pop(0)["refused"]
    assert lines[0]["peak_measured"]
    assert lines[0]["mfu"] > 0
    assert lines[0]["predicted_gb"] > 0
    assert 0 < lines[1]["products"] < 1
    assert lines[2]["step_s_numbers"] > 0
    assert [line.get("sharded") for line in lines[-4:]] == [True, True, None, None]
    plain, in_fp8 = lines[-2:]
    assert plain["loss_difference"] == plain["gradient_error"] == 0
    assert 1e-3 < in_fp8["gradient_error"] < 0.1
