"""The outer step: SGD with Nesterov momentum on the mean pseudo-gradient.

    momentum <- mu * momentum + mean
    params   <- params - lr * (mean + mu * momentum)

The formula is that of torch.optim.SGD(nesterov=True), as DiLoCo uses it (arXiv 2311.08105).
Each value is computed in double and rounded once, when it is stored in fp32. So one peer with lr 1
and no momentum trains as if there were no outer step: in fp32 throughout, g - (g - l) is not l when
l is much smaller than g; in double it is, for l = 0 and down to |l| = 2**-28 |g|.

Shapes: N values.
"""

from bisect import bisect_right
from typing import Final

import numpy as np
from msgspec.structs import replace
from numba import types
from numpy.typing import NDArray

from atoll.config import OuterConfig
from atoll.ids import RoundId
from atoll.outer.kernel import buffer_of, kernel, view_of

_GRAIN: Final = 1024  # parts of the whole lr, so that it is the same number on every machine


def outer_step_(
    params_N: NDArray[np.float32],
    momentum_N: NDArray[np.float32],
    mean_N: NDArray[np.float64],
    *,
    lr: float,
    momentum: float,
) -> None:
    """Take one outer step along `mean_N` (old minus new parameters), in place."""
    assert params_N.shape == momentum_N.shape == mean_N.shape
    _outer_step_(params_N, momentum_N, mean_N, lr, momentum)


@kernel(
    types.void(
        buffer_of(types.float32),
        buffer_of(types.float32),
        view_of(types.float64),
        types.float64,
        types.float64,
    )
)
def _outer_step_(
    params_N: NDArray[np.float32],
    momentum_N: NDArray[np.float32],
    mean_N: NDArray[np.float64],
    lr: float,
    mu: float,
) -> None:
    for i in range(len(params_N)):
        velocity = mu * np.float64(momentum_N[i]) + mean_N[i]
        params_N[i] = np.float64(params_N[i]) - lr * (mean_N[i] + mu * velocity)
        momentum_N[i] = velocity


def momentum_at(config: OuterConfig, round: RoundId) -> float:
    """Return the momentum of round 1, 2, ...: it grows linearly, and is whole after the warm-up."""
    return config.momentum * min(1.0, round / (config.momentum_warmup_rounds + 1))


def suited_to(config: OuterConfig, *, num_contributors: int) -> OuterConfig:
    """Return the settings for the outer step of a round with so many contributors.

    The lr is that of `config.contributors`; with fewer it falls by the cube root of what part they
    are. Over 1, 4, 8 replicas the best ones are 0.4, 0.6, 0.8 (arXiv 2503.09799): the fewer deltas
    are averaged, the more of the mean is noise, and momentum adds it up. As only integers are
    compared, no machine's rounding of a root is in it.
    """
    if num_contributors >= config.contributors:
        return config
    part = num_contributors * _GRAIN**3 // config.contributors
    factor = (bisect_right(range(_GRAIN), part, key=lambda k: k**3) - 1) / _GRAIN
    return replace(config, lr=config.lr * factor)
