"""Layers as compiled code: with a toolchain, without one, and left alone.

The case "compiled" of `test_ranks` has them recomputed, sharded, and compared with plain ones.
"""

from shutil import which

import pytest
import torch
from tests.numerics.ranked import ODD
from torch._dynamo.utils import counters

from atoll.errors import ConfigError
from atoll.train.compiled import require_compiler, uncompiled
from atoll.train.parallel import ALONE
from atoll.train.trainer import build

# What torch.compile says of its own doings.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet():
    torch.compiler.reset()
    counters.clear()


@pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler")
def test_a_machine_with_a_toolchain_is_found_fit():
    require_compiler(CPU)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_machine_without_a_toolchain_says_what_it_lacks():
    nowhere = torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)})
    with nowhere, pytest.raises(ConfigError, match="nothing can be compiled here") as caught:
        require_compiler(CPU)
    assert "C++ compiler" in caught.value.hint
    assert "compile = false" in caught.value.hint


def test_what_is_rare_is_not_compiled_for():
    model = build(ODD.model, CPU, ranks=ALONE, precision="fp32", compiler="inductor")
    assert not model.masks_in_blocks, "there is no backward pass for it on a CPU"
    model.masks_in_blocks = True
    with uncompiled(model, "inductor"):
        assert not model.masks_in_blocks, "as written, it would form all scores at once"
        model(torch.zeros((1, 5), dtype=torch.int64))
    assert model.masks_in_blocks
    assert not counters["stats"]
