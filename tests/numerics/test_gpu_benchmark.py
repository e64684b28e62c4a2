"""benchmarks/gpu.py, in small on the CPU: it must be right before a GPU is at hand."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
SMALL = ("--models", "tiny", "--layers", "1", "--sequence-length", "16", "--steps", "1")


def test_answers_each_question_on_a_cpu():
    plain = ("--device", "cpu", "--compiler", "none", "--pairs", "1")
    command = [sys.executable, str(SCRIPT), *plain, *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    questions = [line["question"] for line in lines]
    exchange = ["snapshot", "beside", "merge", "merge", "merge", "goals"]
    of_model = ["step", "breakdown", "packed", *exchange]
    of_way = ["step", "breakdown"]
    by_way = [*of_way, "step"]  # sharded, and why not in fp8
    assert questions == [*of_model, "reference", "reference", *by_way]
    plain, goals = lines[0], lines[8]
    assert plain["peak_measured"]
    assert plain["mfu"] > 0
    assert plain["predicted_gb"] > 0
    assert 0 < lines[1]["products"] < 1
    assert lines[2]["step_s_numbers"] > 0
    assert goals["mfu"] == plain["mfu"]
    assert set(goals["reached"]) == {"mfu", "exchange"}
    in_fp32, in_fp8 = (line for line in lines if line["question"] == "reference")
    assert in_fp32["loss_difference"] == in_fp32["gradient_error"] == 0
    assert 1e-3 < in_fp8["gradient_error"] < 0.1
    assert [line["sharded"] for line in lines[-3:-1]] == [True, True]
    assert "no matrix of this model is large enough" in lines[-1]["refused"]
