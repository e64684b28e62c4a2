from types import FunctionType

import numpy as np
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
