"""benchmarks/gpu.py, in small on the CPU: it must be right before a GPU is at hand."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
SMALL = ("--models", "tiny", "--layers", "1", "--sequence-length", "16", "--steps", "1")


def test_answers_each_question_on_a_cpu():
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--pairs", "1", "--sharded", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    questions = [line["question"] for line in lines]
    exchange = ["snapshot", "beside", "merge", "merge", "merge"]
    assert questions == ["step", "packed", *exchange, "step", "reference"]
    assert lines[0]["peak_measured"]
    assert lines[0]["mfu"] > 0
    assert lines[1]["step_s_numbers"] > 0
    assert lines[-2]["sharded"]
    assert lines[-1]["loss_difference"] == lines[-1]["gradient_error"] == 0
