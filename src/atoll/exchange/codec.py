"""How a flat vector becomes bytes and comes back: what a codec is, and which ones there are.

The codec is part of the plan of a round. Its bytes are little-endian and the same on any hardware.

Shapes: N values.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atoll.exchange import bf16, fp32, fp64, int8
from atoll.ids import Buffer


class Codec(Protocol):
    """`check` a payload from another machine once; `decode` and `accumulate_` rely on that."""

    def encoded_bytes(self, num_values: int) -> int:
        """Return how many bytes so many values take."""

    def encode(self, x_N: NDArray[np.float64]) -> bytes:
        """Return the payload.

        Raises:
            BadUpdateError: some value is a NaN, infinite or too large.
        """

    def check(self, payload: Buffer, num_values: int) -> float:
        """Return the squared L2 norm of what the payload decodes to.

        Raises:
            BadBlobError: it has the wrong size, or does not decode to finite values.
        """

    def decode(self, payload: Buffer, num_values: int) -> NDArray[np.float64]:
        """Return the N values.

        Raises:
            BadBlobError: the payload has the wrong size.
        """

    def accumulate_(self, total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
        """Add `share` times the decoded values to `total_N`, in plain IEEE double.

        Raises:
            BadBlobError: the payload has the wrong size.
        """


CODECS: dict[str, Codec] = {"fp64": fp64, "fp32": fp32, "bf16": bf16, "int8": int8}
