"""How local weights take over what the others agreed on, where this peer's work is not in it yet.

    local = new global + (local - reference)        the work since `reference` stays

Sums are taken in double: where the new global is the reference, nothing has moved, and the local
weights must come out unchanged. In single precision they do not, e.g. for |local| << |reference|.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

CHUNK_VALUES: Final = 1 << 20  # bounds the temporary memory; changes no result


def carry_(
    local_N: NDArray[np.float32],
    *,
    global_N: NDArray[np.float32],
    reference_N: NDArray[np.float32],
) -> None:
    """Set `local_N` to `global_N + (local_N - reference_N)`, rounded to single precision once."""
    for start in range(0, len(local_N), CHUNK_VALUES):
        chunk = slice(start, start + CHUNK_VALUES)
        moved = local_N[chunk].astype(np.float64)
        moved -= reference_N[chunk]
        moved += global_N[chunk]
        local_N[chunk] = moved
