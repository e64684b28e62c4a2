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

from atoll.config import ModelConfig
from atoll.model.shapes import num_parameters, parameter_specs

PIECE_VALUES = 2**20  # bounds the working memory; even, so that no piece drops half a raw draw


def fill_initial_(out_N: NDArray[np.float32], config: ModelConfig, *, seed: int) -> None:
    """Fill a flat vector with the initial parameters in canonical order, bit-identical anywhere."""
    assert out_N.shape == (num_parameters(config),), "not a flat vector of this model"
    start = 0
    for index, spec in enumerate(parameter_specs(config)):
        tensor_N = out_N[start : start + spec.num_values]
        if spec.init == "ones":
            tensor_N.fill(1.0)
        else:
            philox = np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
            _fill_uniform_(tensor_N, philox, std=spec.init)
        start += spec.num_values


def _fill_uniform_(out_N: NDArray[np.float32], philox: np.random.Philox, *, std: float) -> None:
    # A uniform distribution on (-a, a) has the variance a**2 / 3. IEEE 754 rounds sqrt correctly.
    scale = np.float32(math.sqrt(3.0) * std / 2**24)
    for start in range(0, out_N.size, PIECE_VALUES):
        piece_P = out_N[start : start + PIECE_VALUES]
        raw = philox.random_raw((piece_P.size + 1) // 2).astype("<u8", copy=False)
        bits_P = raw.view("<u4")[: piece_P.size]
        odd_P = (bits_P >> 7 | 1).astype(np.int32) - 2**24
        np.multiply(odd_P.astype(np.float32), scale, out=piece_P)
