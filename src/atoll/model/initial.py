"""State 0: the initial parameters, a function of the config and a seed, and of nothing else.

    Philox(key = seed, index of the tensor) -> 25 bits, made odd, centred -> fp32 -> * scale

Every peer computes them for itself, and the hash of the result must agree. So each operation is one
that any hardware does exactly alike: numpy promises the bits of Philox for ever (NEP 19), the odd
integers below 2**24 in magnitude are exact in fp32, and one IEEE multiplication rounds each. A
normal distribution would need logarithms, which no two libraries round alike; hence a uniform one
with the same standard deviation.

Shapes: N all values of the model, P those of one piece.
"""

import math

import numpy as np
from numpy.typing import NDArray

from atoll.model.layout import Layout

PIECE_VALUES = 2**20  # bounds the working memory; even, so that no piece drops half a raw draw


def initial_of(layout: Layout, *, seed: int) -> NDArray[np.float32]:
    """Return the initial parameters as a flat vector."""
    params_N = np.empty(layout.num_values, np.float32)
    fill_initial_(params_N, layout, seed=seed)
    return params_N


def fill_initial_(out_N: NDArray[np.float32], layout: Layout, *, seed: int) -> None:
    """Fill a flat vector with the initial parameters, the same bits anywhere and in any layout."""
    assert out_N.shape == (layout.num_values,), "not a flat vector of this model"
    streams: dict[int, np.random.Philox] = {}
    for entry in layout.entries:
        rows_N = out_N[entry.start : entry.stop]
        if entry.spec.init == "ones":
            rows_N.fill(1.0)
            continue
        # The parts of a tensor lie in the order of its rows: each goes on where the last one ended.
        # No part drops half a raw draw, as a row of what is cut is as wide as the model: even.
        if entry.index not in streams:
            key = np.array([seed, entry.index], dtype=np.uint64)
            streams[entry.index] = np.random.Philox(key=key)
        _fill_uniform_(rows_N, streams[entry.index], std=entry.spec.init)


def _fill_uniform_(out_N: NDArray[np.float32], philox: np.random.Philox, *, std: float) -> None:
    # A uniform distribution on (-a, a) has the variance a**2 / 3. IEEE 754 rounds sqrt correctly.
    scale = np.float32(math.sqrt(3.0) * std / 2**24)
    for start in range(0, out_N.size, PIECE_VALUES):
        piece_P = out_N[start : start + PIECE_VALUES]
        raw = philox.random_raw((piece_P.size + 1) // 2).astype("<u8", copy=False)
        bits_P = raw.view("<u4")[: piece_P.size]
        odd_P = (bits_P >> 7 | 1).astype(np.int32) - 2**24
        np.multiply(odd_P.astype(np.float32), scale, out=piece_P)
