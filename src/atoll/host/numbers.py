"""What members measure and say of themselves may be any number: which the host believes. Pure.

Nothing that a member says may stop the host. So the smallest and the largest numbers that there are
are refused here, once, and not wherever sums or quotients of them were zero, infinite or no number.
"""

from typing import Final

SLOWEST: Final = 1e-6  # per second: a byte in eleven days
FASTEST: Final = 1e15
# Nats per token, or what else a model learns by. Whose model has gone astray is heard: its norm is
# clipped, and it is well again after that. Times all the tokens of a round this is a number yet.
LARGEST_LOSS: Final = 1e200


def rate_of(said: float) -> float | None:
    """Return the rate that a member says, whatever it is of, per second; None: it is none."""
    return said if SLOWEST <= said <= FASTEST else None  # false for a NaN, too


def is_loss(said: float) -> bool:
    return abs(said) <= LARGEST_LOSS
