"""The loss of tokens that were trained on, to be added up over steps and rounds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of some tokens, all together."""

    sum: float = 0.0
    num_tokens: int = 0

    @property
    def mean(self) -> float:
        return self.sum / max(1, self.num_tokens)

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.sum + other.sum, self.num_tokens + other.num_tokens)
