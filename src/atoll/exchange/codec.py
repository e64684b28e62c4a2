"""How a flat vector becomes bytes and comes back: what a codec is, and which ones there are.

The codec is part of the plan of a round. Its bytes are little-endian and the same on any hardware.

    x = global - local (+ FEEDBACK * residual) --encode_difference--> payload
    residual <- x - decode(payload)                                   leave_, once it is committed

Shapes: N values.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atoll.exchange import bf16, fp32, fp64, int4, int8, sparse, sparse8
from atoll.ids import Buffer


class Codec(Protocol):
    """`check` a payload from another machine once; `decode` and `accumulate_` rely on that."""

    @property
    def FEEDBACK(self) -> float | None:  # noqa: N802 - a constant of the module
        """How much of what one encoding drops comes back with the next; None: the codec forgets."""

    def encoded_bytes(self, num_values: int) -> int:
        """Return how many bytes so many values take."""

    def encode(self, x_N: NDArray[np.float64], into: bytearray | None = None) -> bytearray:
        """Return the payload: `into`, if it is there, which has its size.

        Raises:
            BadUpdateError: some value is a NaN, infinite or too large.
        """

    def encode_difference(
        self,
        global_N: NDArray[np.float32],
        local_N: NDArray[np.float32],
        residual_N: NDArray[np.float32] | None = None,
        *,
        into: bytearray | None = None,
    ) -> bytearray:
        """Return the payload of `global_N - local_N`, plus FEEDBACK times the residual.

        A codec without FEEDBACK takes no residual.

        Raises:
            BadUpdateError: some value is a NaN, infinite or too large.
        """

    def leave_(
        self,
        residual_N: NDArray[np.float32],
        payload: Buffer,
        *,
        global_N: NDArray[np.float32],
        local_N: NDArray[np.float32],
    ) -> None:
        """Put what `payload` dropped into `residual_N`, which held what it was encoded with.

        To be called once, when the contribution is committed. Only for a codec with FEEDBACK.
        """

    def check(self, payload: Buffer, num_values: int) -> float:
        """Return the squared L2 norm of what the payload decodes to.

        Raises:
            BadBlobError: it has the wrong size, or does not decode to finite values.
        """

    def decode(
        self, payload: Buffer, num_values: int, into: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return the N values in double; or in `into`, rounded to its type.

        Raises:
            BadBlobError: the payload has the wrong size.
        """

    def accumulate_(self, total_N: NDArray[np.float64], payload: Buffer, *, share: float) -> None:
        """Add `share` times the decoded values to `total_N`, in plain IEEE double.

        Raises:
            BadBlobError: the payload has the wrong size.
        """


CODECS: dict[str, Codec] = {
    "fp64": fp64,
    "fp32": fp32,
    "bf16": bf16,
    "int8": int8,
    "int4": int4,
    "sparse": sparse,
    "sparse8": sparse8,
}
