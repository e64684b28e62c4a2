import importlib.util
import inspect
from types import FunctionType

import numpy as np
import pytest
from numba import types

from atoll.outer.kernel import kernel, view_of


def largest(x_N):
    result = x_N[0]
    for i in range(len(x_N)):
        result = max(result, x_N[i])
    return result


def test_compiles_where_no_cache_can_be_kept():
    homeless = FunctionType(largest.__code__.replace(co_filename="<nowhere>"), globals())
    compiled = kernel(types.float64(view_of(types.float64)))(homeless)
    assert compiled(np.array([1.0, 3.0, 2.0])) == 3.0
    assert not compiled.stats.cache_path


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", bytes(300), b"\x80\x04\x95"])
def test_compiles_where_a_power_failure_has_damaged_the_cache(tmp_path, kind, content):
    path = tmp_path / "cached.py"
    path.write_text(inspect.getsource(largest))
    spec = importlib.util.spec_from_file_location("cached", path)
    cached = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cached)
    decorate = kernel(types.float64(view_of(types.float64)))
    decorate(cached.largest)
    (file,) = (tmp_path / "__pycache__").glob(f"*.{kind}")
    file.write_bytes(content)
    assert decorate(cached.largest)(np.array([1.0, 3.0, 2.0])) == 3.0
