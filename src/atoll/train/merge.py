"""How local weights take over what the others agreed on, while this peer goes on with its own work.

    replace    local = global
    carry      local = global + (local - snapshot)         the work since the snapshot stays
    blend      local = alpha local + (1 - alpha) global    (Streaming DiLoCo, arXiv 2501.18512)

Sums are taken in double: where the new global is the snapshot, nothing has moved, and the local
weights must come out unchanged. In single precision they do not, e.g. for |local| << |snapshot|.

Shapes: P the values of a part of the model, C those of a chunk of it.
"""

from collections.abc import Iterator
from typing import Final

from torch import Tensor

CHUNK_VALUES: Final = 1 << 20  # bounds the temporary memory; changes no result


def carry_(local_P: Tensor, *, global_P: Tensor, snapshot_P: Tensor) -> None:
    """Set `local_P` to `global_P + (local_P - snapshot_P)`, rounded to single precision once."""
    for chunk in _chunks(local_P):
        moved_C = local_P[chunk].double()
        moved_C -= snapshot_P[chunk]
        moved_C += global_P[chunk]
        local_P[chunk] = moved_C


def blend_(local_P: Tensor, *, global_P: Tensor, alpha: float) -> None:
    """Set `local_P` to `alpha * local_P + (1 - alpha) * global_P`, rounded once."""
    for chunk in _chunks(local_P):
        blended_C = local_P[chunk].double()
        blended_C *= alpha
        blended_C += global_P[chunk].double() * (1.0 - alpha)
        local_P[chunk] = blended_C


def _chunks(values_P: Tensor) -> Iterator[slice]:
    for start in range(0, len(values_P), CHUNK_VALUES):
        yield slice(start, start + CHUNK_VALUES)
