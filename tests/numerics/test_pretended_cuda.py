"""What runs on a GPU alone, run through on one that is not there; see `pretended`."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest
import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA's own library"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[dict[str, object]]:
    library = tmp_path_factory.mktemp("cuda") / "pretended_cuda.so"
    found = (f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}")
    source = str(HERE / "pretended_cuda.cpp")
    flags = ("-std=c++20", "-shared", "-fPIC", *found)
    libraries = ("-lc10", "-ltorch_cpu")
    subprocess.run(["g++", *flags, source, *libraries, "-o", str(library)], check=True)
    command = [sys.executable, str(HERE / "pretended.py"), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_step_waits_for_the_device_at_its_end_alone(cases):
    """For the loss and the norm: a step that would spoil the weights is not taken."""
    assert len(cases) == 4
    for case in cases:
        assert case["waits"] == [
            "inner.py: loss=total.item(),",
            "inner.py: grad_norm=grad_norm.item(),",
        ]


def test_products_are_in_bf16(cases):
    """Also the loss's own; its sum of gradients is an addition to fp32."""
    for case in cases:
        assert case["products"] == ["torch.bfloat16"]


def test_a_step_takes_the_memory_that_was_predicted(cases):
    plain, selective, layers, fp8 = (case["step"] for case in cases)
    assert [plain, layers, fp8] == pytest.approx([1] * 3, abs=0.01)
    assert 0.9 < selective < 0.95  # what it saves is in no formula


def test_a_snapshot_and_a_merge_take_no_more_than_a_step(cases):
    for case in cases:
        assert max(case["snapshot"], case["merge"]) < 0.75 * case["step"]


def test_a_snapshot_waits_for_nothing_and_is_waited_for_by_whoever_wants_it(cases):
    """The copy begins when the weights are gathered, and their memory is kept until it ends."""
    for case in cases:
        assert case["waits_of_snapshot"] == []
        *pieces, end = case["said"]
        in_turn = ["copying waits for current", "on copying", "on current", "kept for copying"]
        assert pieces == in_turn * (len(pieces) // 4) != []
        assert end == "wait for copying"


def test_a_merge_ends_when_the_device_has_read_the_vectors(cases):
    for case in cases:
        assert case["said_by_merges"] == ["wait for current"] * 3
