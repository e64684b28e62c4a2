"""What members measure and say of themselves may be any number: which the host believes. Pure.

Nothing that a member says may stop the host. So the smallest and the largest numbers that there are
are refused here, once, and not wherever sums or quotients of them were zero, infinite or no number.
"""

from typing import Final

SLOWEST: Final = 1e-6  # per second: a byte in eleven days
FASTEST: Final = 1e15
LEAST_PEAK: Final = 1e6  # operations per second; a computer of the size of a coin does more
LARGEST_PEAK: Final = 1e21  # a million of the largest GPUs
# Nats per token, or what else a model learns by. Whose model has gone astray is heard: its norm is
# clipped, and it is well again after that. Times all the tokens of a round this is a number yet.
LARGEST_LOSS: Final = 1e200


def rate_of(said: float) -> float | None:
    """Return the rate that a member says, whatever it is of, per second; None: it is none."""
    return said if SLOWEST <= said <= FASTEST else None  # false for a NaN, too


def peak_of(said: float) -> float:
    """Return what the devices of a member do at most, as it says, per second; 0: it is unknown."""
    return said if LEAST_PEAK <= said <= LARGEST_PEAK else 0.0


def is_loss(said: float) -> bool:
    return abs(said) <= LARGEST_LOSS
