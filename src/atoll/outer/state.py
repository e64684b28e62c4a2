"""What an agent holds: the global parameters and the outer momentum after the commit of one round.

Shapes: N values, in the order of `outer.layout`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.ids import RoundId


@dataclass(slots=True, eq=False)
class PeerState:
    """The state of `round`. The arrays may be views of memory that a trainer shares."""

    round: RoundId
    params_N: NDArray[np.float32]
    momentum_N: NDArray[np.float32]

    def __post_init__(self) -> None:
        for values_N in (self.params_N, self.momentum_N):
            assert values_N.dtype == np.dtype("<f4"), "its bytes are hashed and sent as they are"
            assert values_N.ndim == 1
            assert values_N.flags.c_contiguous
        assert self.params_N.shape == self.momentum_N.shape

    @classmethod
    def initial(cls, params_N: NDArray[np.float32]) -> "PeerState":
        """Return the state before the first round, which has no momentum yet."""
        return cls(RoundId(0), params_N, np.zeros_like(params_N))

    @property
    def num_values(self) -> int:
        return len(self.params_N)
